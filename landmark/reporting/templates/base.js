"use strict";
// The theme, tables that sort, and what the other parts share.
const widgets = {};
const repaints = [];
const make = (tag, attributes = {}, ...children) => {
  const element = tag.includes(":") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : (100 * share).toFixed(digits) + "%");
const whole = (number) => number.toLocaleString("en-US");

const theme = document.getElementById("theme");
const themes = ["system", "light", "dark"];
const stored = () => { try { return localStorage.getItem("landmark-theme"); } catch { return null; } };
const setTheme = (name) => {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.textContent = "Theme: " + name;
  try { localStorage.setItem("landmark-theme", name); } catch { /* a page from a file may not be allowed to */ }
  for (const repaint of repaints) repaint();
};
let current = themes.includes(stored()) ? stored() : "system";
theme.hidden = false;
theme.addEventListener("click", () => { current = themes[(themes.indexOf(current) + 1) % 3]; setTheme(current); });
const repaintAll = () => { for (const repaint of repaints) repaint(); };
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", repaintAll);

const numberOf = (text) => {
  const plain = text.replace(/[,%+\s]/g, "");
  return plain !== "" && !Number.isNaN(Number(plain)) ? Number(plain) : null;
};
const compareTexts = (a, b) => {
  const [x, y] = [numberOf(a), numberOf(b)];
  return x !== null && y !== null ? x - y : a.localeCompare(b, "en", { numeric: true });
};
const nextSort = (header, first) => {
  const before = header.getAttribute("aria-sort");
  const sort = before === "ascending" ? "descending" : before === "descending" ? "ascending" : first;
  for (const other of header.parentElement.children) if (other.querySelector("button")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", sort);
  return sort === "ascending" ? 1 : -1;
};
// Numbers begin with the greatest, words with A; what is missing comes last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, place) => {
    const button = header.querySelector("button");
    if (!button) return;
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const sign = nextSort(header, header.classList.contains("number") ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const text = new Map(rows.map((row) => [row, row.cells[place].textContent.trim()]));
      rows.sort((a, b) => {
        const [x, y] = [text.get(a), text.get(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * compareTexts(x, y);
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// On a narrow screen the contents begin closed.
if (matchMedia("(max-width: 1099px)").matches) document.querySelector("nav details").open = false;

queueMicrotask(() => {
  for (const place of document.querySelectorAll("[data-widget]")) {
    widgets[place.dataset.widget](place, JSON.parse(place.querySelector("script").textContent));
  }
  setTheme(current);
});
