// A click on a column's title sorts by it, a second click the other way; empty cells stay last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    const numeric = !head.classList.contains("text");
    const key = row => {
      const cell = row.cells[column];
      return numeric ? cell.dataset.sort ?? "" : cell.textContent.trim();
    };
    const order = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    const sorted = [...body.rows].sort((left, right) => {
      const [a, b] = [key(left), key(right)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return descending ? order(b, a) : order(a, b);
    });
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...sorted);
  }));
}
