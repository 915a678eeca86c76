// --- Trade-off -----------------------------------------------------------------------------------

const plain = (name) => name.replaceAll("_", " ");
const unit = (name) => plain(name) + (accuracy(name) || name.includes("agreement") ? ", %" : "");
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function tradeoff(host, table) {
  const columns = table.columns.filter((name) => table.rows.some((row) => score(row, name)));
  const wanted = (...names) => names.find((name) => columns.includes(name)) ?? columns[0];
  const state = {
    x: wanted("clean"),
    y: wanted(table.decisive, "autoattack", "pgd20"),
    paint: wanted("fid_ref", "fid", "generation_agreement", "energy_gap_mean"),
    far: false,
  };
  const options = columns.map((name) => [name, plain(name)]);
  const stage = el("div");
  const set = (key) => (value) => {
    state[key] = value;
    draw();
  };
  const far = el("input", { type: "checkbox", on: { change: () => set("far")(far.checked) } });
  host.append(
    el(
      "div",
      { class: "controls" },
      choice("Across", options, state.x, set("x")),
      choice("Up", options, state.y, set("y")),
      choice("Colour", options, state.paint, set("paint")),
      el("label", { class: "box" }, far, " Far-off rows to scale"),
    ),
    stage,
  );
  function draw() {
    const points = table.rows
      .map((row) => ({ row, x: score(row, state.x), y: score(row, state.y), paint: score(row, state.paint) }))
      .filter((point) => point.x && point.y);
    const frame = framed(points, state, widthOf(host));
    const better = [meanings(state.x).better, meanings(state.y).better];
    if (better[0] && better[1]) frame.marks.append(frontier(points, better, frame));
    const paint = painter(points, state.paint);
    const shown = [...new Set([state.x, state.y, state.paint])];
    frame.marks.append(...points.filter((point) => !point.off).flatMap((point) => errorBars(point, frame)));
    for (const point of points) frame.marks.append(dot(point, paint, shown, () => details(table, point.row, state.y)));
    frame.marks.append(labels(points, frame.inner));
    const off = points.filter((point) => point.off);
    const places = off.map(({ row, x, y }) => `${row.name} (${short(x.mean)}, ${short(y.mean)})`).join(", ");
    const lines = points.map(({ row }) => [row.name, ...shown.map((name) => said(row, name))]);
    stage.replaceChildren(
      box(frame.picture),
      paint.key,
      off.length ? note(`Triangles at the edge stand for rows far off: ${places}.`) : "",
      numbers("Trade-off", ["method", ...shown], lines),
    );
  }
  return draw;
}

// The plot, with `at` and `off` for each point: where it stands, and, where that is the edge, whither it points.
function framed(points, state, width) {
  const near = Object.fromEntries(
    ["x", "y"].map((axis) => [axis, state.far ? () => true : within(points.map((point) => point[axis].mean))]),
  );
  const reach = (axis) => {
    const kept = points.map((point) => point[axis]).filter((found) => near[axis](found.mean));
    const ends = kept.flatMap(({ mean, spread }) => [mean - (spread ?? 0), mean + (spread ?? 0)]);
    return range(ends, { percent: accuracy(state[axis]) });
  };
  const title = `${unit(state.y)} against ${unit(state.x)} of ${points.length} methods`;
  const labels = { xLabel: unit(state.x), yLabel: unit(state.y), title };
  const frame = plot(width, Math.round(clamp(width * 0.56, 320, 560)), { x: reach("x"), y: reach("y"), ...labels });
  for (const point of points) {
    const [x, y] = [frame.px(point.x.mean), frame.py(point.y.mean)];
    const { left, right, top, bottom } = frame.inner;
    point.at = [clamp(x, left + 8, right), clamp(y, top, bottom - 8)];
    const away = [near.x(point.x.mean) ? 0 : x - point.at[0], near.y(point.y.mean) ? 0 : y - point.at[1]];
    point.off = away.some(Boolean) ? (Math.atan2(Math.sign(away[1]), Math.sign(away[0])) * 180) / Math.PI + 360 : 0;
  }
  return frame;
}

// Colours by a column, the brighter the better, and their key.
function painter(points, name) {
  const found = points.map((point) => point.paint?.mean).filter(known);
  const [low, high] = [Math.min(...found), Math.max(...found)];
  const better = meanings(name).better;
  const turned = (share) => (better < 0 ? 1 - share : share);
  const fillOf = (point) =>
    point.paint ? shade(turned(high > low ? (point.paint.mean - low) / (high - low) : 1)) : "var(--card)";
  const cells = [...Array(24).keys()].map((at) =>
    svg("rect", { x: at * 4, width: 4.2, height: 12, style: { fill: shade(turned(at / 23)) } }),
  );
  const title = `${unit(name)}${better ? ` (${better < 0 ? "less" : "more"} is better)` : ""}: ${short(low)}`;
  const scale = el("span", { class: "scale" }, title, icon("0 0 96 12", ...cells), short(high));
  const rest = found.length < points.length ? el("span", {}, "○ not measured") : null;
  return { fillOf, key: found.length ? el("p", { class: "legend-line" }, scale, rest) : "" };
}

const errorBars = ({ x, y, at }, { px, py }) => [
  x.spread ? line("error", px(x.mean - x.spread), at[1], px(x.mean + x.spread), at[1]) : "",
  y.spread ? line("error", at[0], py(y.mean - y.spread), at[0], py(y.mean + y.spread)) : "",
];

function dot({ row, at: [x, y], off, ...point }, paint, shown, open) {
  const key = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open();
  };
  const triangle = { d: "M8 0L-5 -6V6Z", transform: `translate(${x} ${y}) rotate(${off})` };
  const attributes = { class: "mark-point", role: "button", on: { click: open, keydown: key } };
  const mark = svg(off ? "path" : "circle", { ...attributes, ...(off ? triangle : { cx: x, cy: y, r: 6.5 }) });
  mark.style.fill = paint.fillOf(point);
  return spoken(mark, row.name, shown.map((name) => `${plain(name)} ${said(row, name)}`));
}

// The rows that none beats on both axes, joined as a staircase: between two of them lies what neither reaches.
function frontier(points, [alongX, alongY], frame) {
  const beats = (one, other) => {
    const [dx, dy] = [(one.x.mean - other.x.mean) * alongX, (one.y.mean - other.y.mean) * alongY];
    return dx >= 0 && dy >= 0 && dx + dy > 0;
  };
  const best = points.filter((point) => !points.some((other) => beats(other, point)));
  best.sort((one, other) => one.x.mean - other.x.mean);
  const corners = best.flatMap((point, at) => {
    const [here, before] = [[point.x.mean, point.y.mean], best[at - 1]];
    if (!before) return [here];
    return [alongX > 0 ? [before.x.mean, point.y.mean] : [point.x.mean, before.y.mean], here];
  });
  return svg("path", { class: "frontier", d: path(corners, frame) });
}

// The name of each point, where beside it there is room; else the hint alone has it.
function labels(points, inner) {
  const group = svg("g", { "aria-hidden": "true" });
  const taken = points.map(({ at: [x, y] }) => ({ left: x - 8, right: x + 8, top: y - 8, bottom: y + 8 }));
  for (const { row, at } of points) {
    const size = row.name.length * 6.6;
    const [x, y, middle, before] = [...at, at[0] - size / 2, at[0] - size];
    const corners = [[middle, y - 22], [middle, y + 10], [x + 10, y - 6], [before - 10, y - 6]];
    corners.push([x + 8, y - 20], [x + 8, y + 8], [before - 8, y - 20], [before - 8, y + 8]);
    const free = corners.map(([left, top]) => ({ left, top, right: left + size, bottom: top + 13 })).find((area) => {
      const inside = area.left >= inner.left && area.right <= inner.right + 8 && area.top >= inner.top - 4;
      const apart = (other) =>
        area.left >= other.right || area.right <= other.left || area.top >= other.bottom || area.bottom <= other.top;
      return inside && area.bottom <= inner.bottom && taken.every(apart);
    });
    if (!free) continue;
    taken.push(free);
    group.append(words(row.name, free.left, free.top + 11, "start", "label"));
  }
  return group;
}
