// The page: it asks the server for cases, and NiiVue to draw them.
import { colourOf, diceOf, drawn, errorsBetween, fullestPlanes, valuesIn } from "./labels.js";

const LAYERS = [  // from bottom to top, after the image
  { name: "reference", key: "r", on: false },
  { name: "prediction", key: "p", on: true },
  { name: "errors", key: "e", on: false },
];
const ERROR_COLOURS = { R: [0, 255, 47, 214], G: [0, 59, 123, 77], B: [0, 48, 255, 255], A: [0, 255, 255, 255] };
const element = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

const index = await (await fetch("cases.json")).json();
const hidden = new Set();  // label values; they stay hidden in the next case
let shown = null;  // the case on the screen: {number, labels: {kind: voxels}, volumes: {layer: NVImage}, values}
let opened = 0;  // number of the case that is marked in the list
let request = 0;  // counts openings: what belongs to an earlier one is dropped when it arrives
let fixedWindow = null;  // [low, high] that the user has chosen

const viewer = new niivue.Niivue({
  logLevel: "error", dragAndDropEnabled: false, isRadiologicalConvention: true, show3Dcrosshair: true,
  multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS, crosshairColor: [1, 1, 1, 0.6],
  crosshairWidthUnit: "mm", crosshairGap: 6,
  backColor: [0, 0, 0, 1], showLegend: false, viewModeHotKey: "", cycleClipPlaneHotKey: "", loadingText: "",
});
await viewer.attachToCanvas(element("canvas"));
viewer.onLocationChange = showLocation;
viewer.onIntensityChange = () => { fixedWindow = null; showWindow(); };

// ---- cases

async function readVolume(number, name) {
  const response = await fetch(`cases/${number}/${name}.nii`);
  if (!response.ok) throw new Error(await response.text());
  const volume = await niivue.NVImage.loadFromUrl({ url: await response.arrayBuffer(), name: `${name}.nii`, colormap: "gray" });
  return { volume, otherGrid: response.headers.get("X-Other-Grid") };
}

async function openCase(number) {
  const mine = ++request;
  const outdated = () => mine !== request;
  const { channels, labels } = index.cases[number];
  document.body.dataset.shown = "";
  markCase(number);
  notify();
  element("status").textContent = "reading the image …";
  try {
    const channel = Math.min(element("channel").value || 0, channels.length - 1);
    const { volume } = await readVolume(number, `channel/${channel}`);
    if (outdated()) return;
    shown = { number, labels: {}, volumes: {}, values: [], comparable: true };
    viewer.volumes = [];
    const { dims, pixDims } = volume.hdr;
    const sides_mm = [1, 2, 3].map((axis) => dims[axis] * pixDims[axis]);
    viewer.opts.crosshairWidth = 0.0035 * Math.max(...sides_mm);  // thinner lines vanish between pixels
    viewer.addVolume(volume);
    listChannels(channels, channel);
    setWindow();
    await Promise.all(labels.map((kind) => addLabels(number, kind, outdated)));
  } catch (error) {
    if (outdated()) return;
    notify(error.message);
    clearScreen();
  }
  if (outdated()) return;
  element("status").textContent = "";
  if (shown) afterLabels();
  document.body.dataset.shown = String(number);
}

/** Nothing of the case before may stand under the name of one that cannot be read. */
function clearScreen() {
  shown = null;
  viewer.volumes = [];
  viewer.updateGLVolume();
  for (const list of [element("layers"), element("classes").tBodies[0]]) list.replaceChildren();
  element("legend").hidden = true;
}

async function addLabels(number, kind, outdated) {
  if (kind === "prediction") element("status").textContent = "waiting for the prediction, which may be computed now …";
  try {
    const { volume, otherGrid } = await readVolume(number, `label/${kind}`);
    if (outdated()) return;
    shown.labels[kind] = volume.img;
    shown.volumes[kind] = volume;
    if (otherGrid) {
      shown.comparable = false;
      notify(`The ${kind} is on another grid than the image: ${otherGrid}. Errors and Dice are not shown.`);
    }
  } catch (error) {
    if (!outdated()) notify(`${kind}: ${error.message}`);
  }
}

function afterLabels() {
  const { labels, volumes } = shown;
  if (labels.prediction && labels.reference && shown.comparable) {
    volumes.errors = volumes.reference.clone();
    volumes.errors.setColormapLabel(ERROR_COLOURS);
  }
  const declared = Object.keys(index.label_names).map(Number);
  const values = new Set([...declared, ...valuesIn(Object.values(labels))]);
  values.delete(index.ignore_value);
  shown.values = [...values].sort((a, b) => a - b);
  const table = labelColours(shown.values.length);
  for (const { name } of LAYERS) {
    if (!volumes[name]) continue;
    if (name !== "errors") volumes[name].setColormapLabel(structuredClone(table));
    viewer.addVolume(volumes[name]);
  }
  listLayers();
  listClasses();
  refresh();
  goToFullestPlanes();
}

function goToFullestPlanes() {
  const { labels, volumes } = shown;
  const kind = labels.reference ? "reference" : "prediction";
  const voxel = labels[kind] && fullestPlanes(labels[kind], volumes[kind].hdr.dims.slice(1, 4));
  if (!voxel) return;
  const mm = volumes[kind].hdr.affine.slice(0, 3).map(([x, y, z, offset]) => x * voxel[0] + y * voxel[1] + z * voxel[2] + offset);
  viewer.scene.crosshairPos = viewer.mm2frac(mm);
  viewer.createOnLocationChange();
  viewer.drawScene();
}

/** The colours of what `drawn` returns. */
function labelColours(classes) {
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0] };
  for (let place = 0; place < classes; place++) {
    const [red, green, blue] = colourOf(place);
    table.R.push(red); table.G.push(green); table.B.push(blue); table.A.push(255); table.I.push(place + 1);
  }
  return table;
}

// ---- what is visible

function refresh() {
  const { labels, volumes, values } = shown;
  const numbers = new Uint16Array(32768);  // of the visible classes, by value
  values.forEach((value, place) => { if (!hidden.has(value)) numbers[value] = place + 1; });
  for (const kind of Object.keys(labels)) volumes[kind].img = drawn(labels[kind], numbers);
  const opacity = Number(element("opacity").value);
  for (const { name, on } of LAYERS) if (volumes[name]) volumes[name].opacity = on ? opacity : 0;
  if (volumes.errors) {
    const errors = errorsBetween(labels.prediction, labels.reference, numbers, index.ignore_value);
    volumes.errors.img = labels.reference.constructor.from(errors);
    if (volumes.errors.opacity) {  // no colour of a class shall shine through that of an error
      volumes.errors.opacity = 1;
      const prediction = volumes.prediction.img;
      errors.forEach((error, i) => { if (error) prediction[i] = 0; });
    }
  }
  element("legend").hidden = !volumes.errors?.opacity;
  viewer.updateGLVolume();
}

function listLayers() {
  element("layers").replaceChildren(...LAYERS.filter(({ name }) => shown.volumes[name]).map((layer) => {
    const box = make("input", { type: "checkbox", checked: layer.on, id: `layer-${layer.name}` });
    box.addEventListener("change", () => { layer.on = box.checked; refresh(); });
    return make("li", {}, make("label", { className: "row" }, box, layer.name, make("kbd", { textContent: layer.key })));
  }));
}

function listClasses() {
  const { labels, values, volumes } = shown;
  const dice = volumes.errors ? diceOf(labels.prediction, labels.reference, values, index.ignore_value) : new Map();
  element("classes").tBodies[0].replaceChildren(...values.map((value, place) => {
    const box = make("input", { type: "checkbox", checked: !hidden.has(value), id: `class-${value}` });
    box.addEventListener("change", () => { hidden[box.checked ? "delete" : "add"](value); refresh(); });
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = `rgb(${colourOf(place)})`;
    const name = make("label", { className: "row" }, box, swatch, nameOf(value));
    const key = place < 9 ? [make("kbd", { textContent: place + 1 })] : [];
    const score = Number.isNaN(dice.get(value) ?? NaN) ? "–" : dice.get(value).toFixed(3);
    return make("tr", {}, make("td", {}, name), make("td", {}, ...key), make("td", { className: "dice", textContent: score }));
  }));
}

// ---- window and view

function setWindow() {
  if (!shown) return;
  const [image] = viewer.volumes;
  [image.cal_min, image.cal_max] = fixedWindow ?? [image.robust_min, image.robust_max];
  element("presets").hidden = image.global_min > -500;  // not in Hounsfield units
  showWindow();
  viewer.updateGLVolume();
}

function showWindow() {
  const [image] = viewer.volumes;
  element("low").value = Number(image.cal_min.toPrecision(6));
  element("high").value = Number(image.cal_max.toPrecision(6));
  element("preset").value = fixedWindow?.join() ?? "";
}

function listChannels(channels, chosen) {
  element("channel").replaceChildren(...channels.map((name, number) => make("option", { value: number, textContent: name })));
  element("channel").value = chosen;
  element("channels").hidden = channels.length < 2;
}

function setView(value) {
  element("view").value = value;
  viewer.setSliceType(Number(value));
}

// ---- words

function showLocation({ mm, values }) {
  if (!shown) return;
  const place = Array.from(mm).slice(0, 3).map((each) => each.toFixed(1)).join(", ");
  const [image, ...others] = viewer.volumes.map((volume, at) => [volume, values[at].value]);
  const words = others.filter(([volume]) => volume !== shown.volumes.errors).map(([volume, number]) => {
    const kind = volume === shown.volumes.prediction ? "prediction" : "reference";
    return `${kind}: ${number ? nameOf(shown.values[number - 1]) : "–"}`;
  });
  element("status").textContent = [`${place} mm`, `intensity ${Number(image[1].toPrecision(5))}`, ...words].join("   ·   ");
}

function nameOf(value) {
  return index.label_names[value] ?? `label ${value}`;
}

function notify(text) {
  const notice = element("notice");
  notice.textContent = text ? [notice.textContent, text].filter(Boolean).join("\n") : "";
  notice.hidden = !text;
}

function markCase(number) {
  opened = number;
  [...element("cases").querySelectorAll("button")].forEach((button, at) => {
    button.setAttribute("aria-current", String(at === number));
    if (at === number) button.scrollIntoView({ block: "nearest" });
  });
  document.title = `${index.cases[number].name} – ${index.title}`;
}

function listCases() {
  element("title").textContent = index.title;
  element("cases").replaceChildren(...index.cases.map(({ name, dice }, number) => {
    const button = make("button", { type: "button" },
      make("span", { className: "name", textContent: name }),
      make("span", { className: "dice", textContent: dice === null ? "" : dice.toFixed(3) }));
    button.addEventListener("click", () => openCase(number));
    return make("li", {}, button);
  }));
}

// ---- controls

element("opacity").addEventListener("input", () => shown && refresh());
element("outline").addEventListener("change", (event) => viewer.setAtlasOutline(event.target.checked ? 1 : 0));
element("view").addEventListener("change", (event) => setView(event.target.value));
element("channel").addEventListener("change", () => openCase(opened));
element("automatic").addEventListener("click", () => { fixedWindow = null; setWindow(); });
element("all").addEventListener("click", () => {
  if (!shown) return;
  const hide = !hidden.size;
  hidden.clear();
  if (hide) shown.values.forEach((value) => hidden.add(value));
  listClasses();
  refresh();
});
element("preset").addEventListener("change", ({ target }) => {
  fixedWindow = target.value ? target.value.split(",").map(Number) : null;
  setWindow();
});
for (const id of ["low", "high"]) {
  element(id).addEventListener("change", () => {
    fixedWindow = [Number(element("low").value), Number(element("high").value)];
    setWindow();
  });
}

const click = (id) => element(id)?.click();
const KEYS = {
  n: () => openCase(Math.min(opened + 1, index.cases.length - 1)),
  b: () => openCase(Math.max(opened - 1, 0)),
  o: () => click("outline"),
  w: () => click("automatic"),
  0: () => click("all"),
  v: () => setView(["3", "0", "1", "2", "4"][(["3", "0", "1", "2", "4"].indexOf(element("view").value) + 1) % 5]),
  ...Object.fromEntries(LAYERS.map(({ name, key }) => [key, () => click(`layer-${name}`)])),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=number], select")) return;
  if (/^[1-9]$/.test(event.key)) click(`class-${shown?.values[event.key - 1]}`);
  else KEYS[event.key]?.();
});

listCases();
openCase(0);
