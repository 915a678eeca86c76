// The parts of the page's script share one scope, in the order of report.py: what they are made of comes first.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

// --- Elements: text is always text, never markup -------------------------------------------------

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "style") for (const [key, set] of Object.entries(value)) node.style.setProperty(key, set);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// A table in a box that scrolls, also by keyboard; the first cell of a row is its head.
function grid(name, heads, rows, kind = "") {
  const top = heads.map((head, at) => el("th", { scope: "col", class: at ? kind : "name" }, head));
  const lines = rows.map(([head, ...cells]) => {
    const first = el("th", { scope: "row", class: "name" }, head);
    return el("tr", {}, first, ...cells.map((cell) => el("td", { class: kind }, cell)));
  });
  const caption = el("caption", { class: "hidden" }, name);
  const table = el("table", {}, caption, el("thead", {}, el("tr", {}, top)), el("tbody", {}, lines));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, table);
}

// --- Numbers -------------------------------------------------------------------------------------

const known = (value) => typeof value === "number" && Number.isFinite(value);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const spread = (values) => {
  if (values.length < 2) return null;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
};
const short = (value) => (known(value) ? String(Number(value.toPrecision(4))) : "?");
const entriesOf = (row) => row.entries.map((file) => data.entries[file]);
const done = (entry, metric) => {
  const found = entry.measurements[metric];
  return found && found.status === "done" ? found : null;
};
const meanings = (name) => data.columns[name];
const accuracy = (name) => meanings(name).percent;

function score(row, name) {
  const column = meanings(name);
  const values = entriesOf(row)
    .map((entry) => done(entry, column.metric)?.values[column.value])
    .filter(known);
  return values.length ? { mean: mean(values), spread: spread(values), count: values.length } : null;
}
function said(row, name) {
  const found = score(row, name);
  if (!found) {
    const { metric, value } = meanings(name);
    const words = entriesOf(row)
      .map((entry) => done(entry, metric)?.values[value])
      .filter((word) => typeof word === "string");
    return [...new Set(words)].join("; ") || "not measured";
  }
  const digits = meanings(name).digits;
  return found.mean.toFixed(digits) + (found.spread === null ? "" : ` ± ${found.spread.toFixed(digits)}`);
}

// --- Hints on pointing and on focus --------------------------------------------------------------

const tip = document.querySelector(".tip");

function hint(node, text) {
  const show = (event) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = node.getBoundingClientRect();
    const [x, y] = event.type === "focus" ? [box.left + box.width / 2, box.top] : [event.clientX, event.clientY];
    const size = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(x + 12, innerWidth - size.width - 6))}px`;
    tip.style.top = `${y - size.height - 12 > 6 ? y - size.height - 12 : y + 18}px`;
  };
  for (const event of ["pointerenter", "pointermove", "focus"]) node.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) node.addEventListener(event, hideHint);
  return node;
}
function hideHint() {
  tip.hidden = true;
}
addEventListener("keydown", (event) => event.key === "Escape" && hideHint());
addEventListener("scroll", hideHint, { passive: true });

// A mark that can be pointed at, reached by keyboard, and read aloud.
function spoken(node, title, lines) {
  const label = `${title}: ${lines.join(", ")}`;
  fill(node, { tabindex: 0, role: node.getAttribute("role") ?? "img", "aria-label": label }, []);
  return hint(node, [title, ...lines].join("\n"));
}
