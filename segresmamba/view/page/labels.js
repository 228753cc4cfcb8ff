// What follows from the voxels of a prediction and a reference on one grid. No drawing.

export const FALSE_POSITIVE = 1, FALSE_NEGATIVE = 2;  // of two visible classes: both, another class

// Okabe and Ito's palette, which colour-blind readers can distinguish. Errors have other colours.
const PALETTE = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2"];

/** Red, green and blue of a class, by its place in the list of classes. */
export function colourOf(place) {
  if (place < PALETTE.length) {
    return [1, 3, 5].map((at) => parseInt(PALETTE[place].slice(at, at + 2), 16));
  }
  const hue = (place * 137.5) % 360;  // golden angle: neighbours in the list differ most
  return [0, 8, 4].map((shift) => {
    const at = (shift + hue / 30) % 12;
    return Math.round(255 * (0.6 - 0.35 * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  });
}

/** The label values that occur in any of the volumes, background left out, ascending. */
export function valuesIn(volumes) {
  const found = new Uint8Array(32768);
  for (const voxels of volumes) for (let i = 0; i < voxels.length; i++) found[voxels[i]] = 1;
  return Array.from(found.keys()).filter((value) => value > 0 && found[value]);
}

/**
 * A copy to be drawn: each visible value as its number in the list of classes, 0 for all others.
 *
 * NiiVue has a colour for each value up to the largest, and a graphics card bounds how many.
 * `numbers` is indexed by value.
 */
export function drawn(voxels, numbers) {
  return voxels.map((value) => numbers[value]);
}

/**
 * Where visible classes of prediction and reference differ, as sums of the constants above;
 * `visible` is indexed by value.
 */
export function errorsBetween(prediction, reference, visible, ignored) {
  const errors = new Uint8Array(reference.length);
  for (let i = 0; i < errors.length; i++) {
    const found = prediction[i], expected = reference[i];
    if (found === expected || expected === ignored) continue;
    errors[i] = (visible[found] ? FALSE_POSITIVE : 0) + (visible[expected] ? FALSE_NEGATIVE : 0);
  }
  return errors;
}

/** Dice of each value; NaN where it is in neither volume. */
export function diceOf(prediction, reference, values, ignored) {
  const sizes = new Float64Array(32768), shared = new Float64Array(32768);
  for (let i = 0; i < reference.length; i++) {
    const found = prediction[i], expected = reference[i];
    if (expected === ignored) continue;
    sizes[found] += 1;
    sizes[expected] += 1;
    if (found === expected) shared[found] += 1;
  }
  return new Map(values.map((value) => [value, (2 * shared[value]) / sizes[value]]));
}

/** The voxel [x, y, z] where the planes with most foreground meet; null if there is none. */
export function fullestPlanes(voxels, [width, height, depth]) {
  const counts = [new Uint32Array(width), new Uint32Array(height), new Uint32Array(depth)];
  let at = 0;
  for (let z = 0; z < depth; z++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (voxels[at++] === 0) continue;
        counts[0][x] += 1;
        counts[1][y] += 1;
        counts[2][z] += 1;
      }
    }
  }
  if (!counts[0].some(Boolean)) return null;
  return counts.map((count) => count.indexOf(Math.max(...count)));
}
