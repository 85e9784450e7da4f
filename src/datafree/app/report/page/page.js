"use strict";
// Charts that are not seen yet are drawn when they are, so that a page of many opens at once.
function draw(place) {
  const spec = JSON.parse(place.querySelector("script").textContent);
  const asked = { renderer: "svg", actions: false, logLevel: 1, tooltip: { theme: "custom", disableDefaultStyle: true } };
  vegaEmbed(place.appendChild(document.createElement("div")), spec, asked)
    .then(() => { place.dataset.drawn = "yes"; })
    .catch((error) => { place.textContent = String(error); console.error(error); });
}
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }
}, { rootMargin: "800px" });
document.querySelectorAll(".chart").forEach((place) => seen.observe(place));
window.addEventListener("beforeprint", () => {
  document.querySelectorAll(".chart:not([data-drawn])").forEach((place) => { seen.unobserve(place); draw(place); });
});

function cellValue(row, column, isNumber) {
  const cell = row.cells[column];
  if (!isNumber) return cell.textContent.trim();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}
function compare(a, b) {
  if (a === null || b === null) return a === b ? 0 : a === null ? Infinity : -Infinity; // what is not known is last
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}
function sortBy(heading) {
  const table = heading.closest("table"), body = table.tBodies[0], isNumber = heading.dataset.kind === "number";
  const first = isNumber ? "descending" : "ascending", other = isNumber ? "ascending" : "descending";
  const order = heading.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1, column = heading.cellIndex;
  const rows = [...body.rows].map((row) => [cellValue(row, column, isNumber), row]);
  rows.sort(([a], [b]) => { const found = compare(a, b); return Number.isFinite(found) ? sign * found : found; });
  body.append(...rows.map(([, row]) => row));
  table.querySelectorAll("thead th").forEach((th) => th.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", order);
}
document.querySelectorAll("thead button").forEach((button) => {
  button.addEventListener("click", () => sortBy(button.closest("th")));
});
