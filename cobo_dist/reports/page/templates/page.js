// What all of the page uses: elements, compressed data, light and dark, tables that sort, printing.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(tag);
  const made = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) { made.setAttribute(name, value); }
  made.append(...children);
  return made;
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decode(text) { return JSON.parse(new TextDecoder().decode(await inflate(text))); }

function fillSelect(select, labels, chosen) {
  select.replaceChildren(...labels.map((label, i) => make("option", { value: i }, label)));
  select.value = Math.max(0, labels.indexOf(chosen));
}

// Four digits, without a row of zeros at the end.
function short(value) { return value === null ? "-" : String(Number(value.toPrecision(4))); }

// -- light and dark ----------------------------------------------------------------------------------

const page = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const redraws = [];
let printing = false;

function isDark() {
  if (printing) { return false; }
  return page.dataset.theme ? page.dataset.theme === "dark" : systemDark.matches;
}

function redraw() { redraws.forEach((draw) => draw()); }

// Dark colors of lines are made lighter on a dark page.
function onPage(color) {
  if (!isDark()) { return color; }
  const parts = [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16));
  const light = (0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2]) / 255;
  const more = light < 0.55 ? 0.55 - light : 0;
  const mixed = parts.map((part) => Math.round(part + (255 - part) * more));
  return "#" + mixed.map((part) => part.toString(16).padStart(2, "0")).join("");
}

function startTheme(button) {
  try { page.dataset.theme = localStorage.getItem("theme") || ""; } catch { /* storage is off */ }
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colors`);
    redraw();
  };
  button.addEventListener("click", () => {
    page.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", page.dataset.theme); } catch { /* storage is off */ }
    show();
  });
  systemDark.addEventListener("change", show);
  button.hidden = false;
  show();
}

addEventListener("beforeprint", () => {
  printing = true;
  for (const folded of document.querySelectorAll("details:not([open])")) {
    folded.open = true;
    folded.dataset.closed = "yes";
  }
  redraw();
});
addEventListener("afterprint", () => {
  printing = false;
  for (const folded of document.querySelectorAll("details[data-closed]")) {
    folded.open = false;
    delete folded.dataset.closed;
  }
  redraw();
});

// -- tables ------------------------------------------------------------------------------------------

// A cell's first number; words and missing numbers come after all numbers.
function sortKey(text) {
  const found = text.replace(/[−–]/g, "-").match(/-?\d[\d.]*(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
}

function compareCells(a, b, words) {
  if (words) { return a.localeCompare(b, undefined, { numeric: true }); }
  const [x, y] = [sortKey(a), sortKey(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) { return Number.isNaN(x) - Number.isNaN(y); }
  return x - y;
}

function sortTable(table, column, descending) {
  const head = [...table.tHead.rows].at(-1).cells;
  const words = head[column].classList.contains("word");
  const rows = [...table.tBodies[0].rows];
  const text = (row) => row.cells[column].textContent.trim();
  const isNumber = (row) => words || !Number.isNaN(sortKey(text(row)));
  rows.sort((a, b) => {
    if (isNumber(a) !== isNumber(b)) { return isNumber(a) ? -1 : 1; } // last, whichever the direction
    return (descending ? -1 : 1) * compareCells(text(a), text(b), words);
  });
  table.tBodies[0].append(...rows);
  [...head].forEach((cell, i) => {
    if (i === column) { cell.setAttribute("aria-sort", descending ? "descending" : "ascending"); }
    else { cell.removeAttribute("aria-sort"); }
  });
}

function makeSortable(table) {
  const head = [...table.tHead.rows].at(-1).cells;
  [...head].forEach((cell, column) => {
    const button = make("button", { type: "button", title: "Sort by this column" });
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const first = cell.classList.contains("word") ? "ascending" : "descending";
      const now = cell.getAttribute("aria-sort");
      sortTable(table, column, now ? now === "ascending" : first === "descending");
    });
  });
}

// A table that replaces another is sorted as that one was.
function sortAlike(before, after) {
  const head = before && before.tHead ? [...before.tHead.rows].at(-1).cells : [];
  [...head].forEach((cell, column) => {
    const sorted = cell.getAttribute("aria-sort");
    const cells = [...after.tHead.rows].at(-1).cells;
    if (sorted && column < cells.length) { sortTable(after, column, sorted === "descending"); }
  });
}
