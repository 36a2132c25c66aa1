"use strict";
// The theme, sortable tables, and helpers that the widgets share.
const widgets = {};
const repaints = [];
const make = (tag, attributes = {}, ...children) => {
  const element = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const formatPercent = (fraction, digits = 1) =>
  fraction === null || fraction === undefined ? "–" : (100 * fraction).toFixed(digits) + "%";
const formatInteger = (number) => number.toLocaleString("en-US");

const themeButton = document.getElementById("theme");
const themes = ["system", "light", "dark"];
const storedTheme = () => { try { return localStorage.getItem("landmark-theme"); } catch { return null; } };
const repaintAll = () => { for (const repaint of repaints) repaint(); };
const setTheme = (name) => {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  themeButton.textContent = "Theme: " + name;
  try { localStorage.setItem("landmark-theme", name); } catch { /* Browsers can block storage for local files. */ }
  repaintAll();
};
let currentTheme = themes.includes(storedTheme()) ? storedTheme() : "system";
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  currentTheme = themes[(themes.indexOf(currentTheme) + 1) % themes.length];
  setTheme(currentTheme);
});
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", repaintAll);
}

const parseNumber = (text) => {
  const digits = text.replace(/[,%+\s]/g, "");
  return digits !== "" && !Number.isNaN(Number(digits)) ? Number(digits) : null;
};
const compareTexts = (a, b) => {
  const [x, y] = [parseNumber(a), parseNumber(b)];
  return x !== null && y !== null ? x - y : a.localeCompare(b, "en", { numeric: true });
};
// Update aria-sort of a column header. Returns 1 for ascending and -1 for descending order.
const toggleSort = (header, initial) => {
  const before = header.getAttribute("aria-sort");
  const sort = before === "ascending" ? "descending" : before === "descending" ? "ascending" : initial;
  for (const other of header.parentElement.children) {
    if (other.querySelector("button")) other.setAttribute("aria-sort", "none");
  }
  header.setAttribute("aria-sort", sort);
  return sort === "ascending" ? 1 : -1;
};
// The first click sorts numbers in descending and text in ascending order. Empty cells are always last.
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const sign = toggleSort(header, header.classList.contains("number") ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const text = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
      rows.sort((a, b) => {
        const [x, y] = [text.get(a), text.get(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * compareTexts(x, y);
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// On a narrow screen, the table of contents is initially closed.
if (matchMedia("(max-width: 1099px)").matches) document.querySelector("nav details").open = false;

queueMicrotask(() => {
  for (const container of document.querySelectorAll("[data-widget]")) {
    widgets[container.dataset.widget](container, JSON.parse(container.querySelector("script").textContent));
  }
  setTheme(currentTheme);
});
