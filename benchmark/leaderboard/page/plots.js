const COLOURS = 7;
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
// From worse to better; brightness rises all the way, so that it reads without colour.
const RAMP = ["#2b3f8c", "#2f6f9f", "#3d9a8b", "#8cc152", "#f2d64b"];
const LANE = 27;

// --- Axes ----------------------------------------------------------------------------------------

// Tells which values are not far out (Tukey 1977: more than 3 interquartile ranges from the quartiles).
function within(values) {
  const sorted = values.slice().sort((one, other) => one - other);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const room = 3 * (at(0.75) - at(0.25));
  return (value) => room === 0 || (value >= at(0.25) - room && value <= at(0.75) + room);
}

function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) {
    found.push(Math.abs(value) < step * 1e-6 ? 0 : Number(value.toPrecision(12)));
  }
  return found;
}

function range(values, { percent = false, zero = false, pad = 0.06 } = {}) {
  const kept = values.filter(known);
  if (!kept.length) return [0, 1];
  let low = Math.min(...kept),
    high = Math.max(...kept);
  if (zero) low = Math.min(0, low);
  const room = (high - low || Math.abs(high) || 1) * pad;
  low = zero && low === 0 ? 0 : low - room;
  high += room;
  return percent ? [Math.max(low, low < 0 ? -2 : 0), Math.min(high, 102)] : [low, high];
}

const DESCRIPTION = "The same numbers are in the table below the figure.";

function picture(width, height, title, ...content) {
  const about = [svg("title", {}, title), svg("desc", {}, DESCRIPTION)];
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title }, ...about, ...content);
}
const line = (kind, x1, y1, x2, y2) => svg("line", { class: kind, x1, y1, x2, y2 });
const words = (text, x, y, anchor, kind) => svg("text", { x, y, "text-anchor": anchor, class: kind }, text);

// Scales and axes of a plot, and a group for its marks.
function plot(width, height, { x, y, xLabel, yLabel, title, left = 46, logX = false }) {
  const inner = { left, right: width - 12, top: 10, bottom: height - (xLabel ? 42 : 24) };
  const to = logX ? Math.log10 : (value) => value;
  const px = (value) => inner.left + ((to(value) - to(x[0])) / (to(x[1]) - to(x[0]))) * (inner.right - inner.left);
  const py = (value) => inner.bottom - ((value - y[0]) / (y[1] - y[0])) * (inner.bottom - inner.top);
  const marks = svg("g");
  const axes = svg("g", { "aria-hidden": "true" });
  for (const value of ticks(y[0], y[1], height > 200 ? 6 : 4)) {
    axes.append(line("grid", inner.left, py(value), inner.right, py(value)));
    axes.append(words(short(value), inner.left - 7, py(value) + 4, "end"));
  }
  const decades = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].filter((value) => value >= x[0] && value <= x[1]);
  for (const value of logX ? decades : ticks(x[0], x[1], Math.max(3, Math.floor(width / 90)))) {
    axes.append(line("grid", px(value), inner.top, px(value), inner.bottom));
    axes.append(words(short(value), px(value), inner.bottom + 17, "middle"));
  }
  axes.append(line("axis", inner.left, inner.bottom, inner.right, inner.bottom));
  if (xLabel) axes.append(words(xLabel, inner.right, height - 6, "end", "strong"));
  if (yLabel) {
    const middle = (inner.top + inner.bottom) / 2;
    axes.append(fill(words(yLabel, 12, middle, "middle", "strong"), { transform: `rotate(-90 12 ${middle})` }, []));
  }
  return { picture: picture(width, height, title, axes, marks), marks, px, py, inner };
}

// A lane a row, over percent: `draw` puts its marks at the middle y of a lane.
function lanes(width, rows, title, draw) {
  const names = width < 520 ? 108 : 150;
  const height = rows.length * LANE + 34;
  const px = (share) => names + (share / 100) * (width - names - 16);
  const clipped = (name) => {
    const most = Math.floor((names - 16) / 7);
    return name.length > most + 1 ? `${name.slice(0, most)}…` : name;
  };
  const marks = svg("g");
  for (const share of [0, 25, 50, 75, 100]) {
    marks.append(line("grid", px(share), 4, px(share), height - 26));
    marks.append(words(`${share} %`, px(share), height - 8, "middle"));
  }
  rows.forEach((row, at) => {
    const y = (at + 0.5) * LANE + 4;
    marks.append(words(clipped(row.name), names - 8, y + 4, "end", "strong"), draw(row, px, y));
  });
  return picture(width, height, title, marks);
}

// A line through points, broken where one is unknown.
function path(points, { px, py }) {
  let pen = "M";
  return points.reduce((drawn, [x, y]) => {
    const seen = known(x) && known(y);
    const part = seen ? `${pen}${px(x).toFixed(1)} ${py(y).toFixed(1)}` : "";
    pen = seen ? "L" : "M";
    return drawn + part;
  }, "");
}
const curveLine = (d, stroke, dashes) =>
  svg("path", { d, fill: "none", "stroke-width": 2, "stroke-dasharray": dashes, style: { stroke } });

const colour = (index) => `var(--c${(index % COLOURS) + 1})`;
const dash = (index) => DASHES[Math.floor(index / COLOURS) % DASHES.length];
function shade(share) {
  const place = Math.max(0, Math.min(1, share)) * (RAMP.length - 1);
  const index = Math.min(RAMP.length - 2, Math.floor(place));
  const [one, other] = [0, 1].map((step) => [1, 3, 5].map((at) => parseInt(RAMP[index + step].slice(at, at + 2), 16)));
  return `rgb(${one.map((value, at) => Math.round(value + (other[at] - value) * (place - index))).join(" ")})`;
}

// --- What stands around a plot -------------------------------------------------------------------

const icon = (box, ...content) => svg("svg", { viewBox: box, "aria-hidden": "true" }, ...content);
const note = (text) => el("p", { class: "note" }, text);
const box = (drawn, title, ...below) =>
  el("div", { class: "plot" }, title ? el("p", {}, title) : null, drawn, ...below);
const legendLine = (items) =>
  el("p", { class: "legend-line" }, ...items.map(([sign, text]) => el("span", {}, sign, text)));
const patch = (paint) => icon("0 0 24 12", svg("rect", { width: 24, height: 12, rx: 2, style: { fill: paint } }));
const widthOf = (host, columns = 1) =>
  Math.max(250, Math.floor((host.clientWidth - (columns - 1) * 12) / columns) - 18);

function numbers(name, heads, rows) {
  const cell = (value) => (known(value) ? short(value) : (value ?? "not measured"));
  const title = `Data: ${name.charAt(0).toLowerCase()}${name.slice(1)}`;
  const lines = rows.map(([head, ...cells]) => [head, ...cells.map(cell)]);
  return el("details", {}, el("summary", {}, title), grid(name, heads, lines, "number"));
}

function choice(label, options, chosen, change) {
  const items = options.map(([value, text]) => el("option", { value, selected: value === chosen }, text));
  const list = el("select", { on: { change: () => change(list.value) } }, items);
  return el("label", {}, `${label} `, list);
}

function toggles(names, shown, change) {
  const buttons = names.map((name, index) => {
    const press = () => {
      if (!shown.delete(index)) shown.add(index);
      button.setAttribute("aria-pressed", String(shown.has(index)));
      change();
    };
    const sample = curveLine("M0 5H24", colour(index), dash(index));
    const pressed = String(shown.has(index));
    const attributes = { type: "button", class: "toggle", "aria-pressed": pressed, on: { click: press } };
    const button = el("button", attributes, icon("0 0 24 10", sample), name);
    return button;
  });
  return el("div", { class: "toggles", role: "group", "aria-label": "Methods shown" }, ...buttons);
}
