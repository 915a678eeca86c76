// --- Curves over radius and iterations -----------------------------------------------------------

const FIRST = 6; // Rows that are shown without asking for more.

function curves(host, table) {
  const rows = table.rows.filter((row) => swept(row, "eps"));
  const shown = new Set(rows.map((_, at) => at).slice(0, FIRST));
  const panels = { eps: `radius (${table.threat.split(":")[0]})`, steps: "iterations" };
  const stage = el("div", { class: "plots" });
  const names = rows.map((row) => row.name);
  const tables = Object.entries(panels).map(([sweep, label]) => {
    const lines = rows.map((row) => new Map(swept(row, sweep) ?? []));
    const places = [...new Set(lines.flatMap((line) => [...line.keys()]))].sort((one, other) => one - other);
    const cells = lines.map((line, at) => [names[at], ...places.map((place) => line.get(place))]);
    return numbers(`Accuracy against ${label}, percent`, [label, ...places.map(short)], cells);
  });
  host.append(toggles(names, shown, () => draw()), stage, ...tables);
  function draw() {
    const width = widthOf(host, host.clientWidth > 860 ? 2 : 1);
    const drawn = Object.entries(panels).map(([sweep, label]) => {
      const lines = rows.map((row) => swept(row, sweep) ?? []);
      const places = lines.flat().map(([place]) => place);
      const across = [sweep === "steps" ? Math.min(...places) : 0, Math.max(...places)];
      const labels = { xLabel: label, yLabel: "accuracy, %", title: `Accuracy against ${label}` };
      const frame = plot(width, 300, { x: across, y: [0, 100], logX: sweep === "steps", ...labels });
      if (sweep === "eps") frame.marks.append(...protocolRadius(table, frame));
      lines.forEach((line, at) => shown.has(at) && frame.marks.append(sweptLine(line, sweep, names[at], at, frame)));
      return box(frame.picture);
    });
    stage.replaceChildren(...drawn);
  }
  return draw;
}

// Points of a sweep, as means over the seeds; null where none has it.
function swept(row, sweep) {
  const all = entriesOf(row).map((entry) => done(entry, "sweep")?.series);
  const found = all.filter((series) => series?.[sweep] && series[`${sweep}_accuracy`]);
  if (!found.length) return null;
  return found[0][sweep].map((place, at) => {
    const values = found.map((series) => series[`${sweep}_accuracy`][at]).filter(known);
    return [place, values.length ? mean(values) : null];
  });
}

function sweptLine(line, sweep, name, at, frame) {
  // FGSM, one step of eps, is another attack than the iterative one, whose steps are shorter: a dot, not joined.
  const single = sweep === "steps" ? line.filter(([steps, value]) => steps === 1 && known(value)) : [];
  const rest = sweep === "steps" ? line.filter(([steps]) => steps > 1) : line;
  const style = { fill: colour(at) };
  const dots = single.map(([x, y]) => svg("circle", { cx: frame.px(x), cy: frame.py(y), r: 4, style }));
  const group = svg("g", {}, curveLine(path(rest, frame), colour(at), dash(at)), ...dots);
  return spoken(group, name, line.map(([x, y]) => `${short(x)}: ${known(y) ? `${short(y)} %` : "not measured"}`));
}

function protocolRadius(table, { px, inner }) {
  const [top, bottom = 1] = table.threat.split(":")[1].split("/").map(Number);
  const x = px(top / bottom);
  if (x > inner.right) return [];
  return [line("error", x, inner.top, x, inner.bottom), words("the table's eps", x + 4, inner.top + 10, "start")];
}

// --- Energies ------------------------------------------------------------------------------------

const KINDS_OF_ENERGY = { "": "joint energy E(x, y)", marginal_: "marginal energy E(x)" };
const GROUPS = { clean: "var(--c1)", adversarial: "var(--c2)", generated: "var(--c3)" };

function energies(host, table) {
  const rows = table.rows.filter((row) => histogram(row, "") || histogram(row, "marginal_"));
  const kinds = Object.entries(KINDS_OF_ENERGY).filter(([kind]) => rows.some((row) => histogram(row, kind)));
  const state = { kind: kinds[0][0], most: Math.min(FIRST, rows.length) };
  const [stage, tables] = [el("div", { class: "plots small" }), el("div")];
  const set = (key, to) => (value) => {
    state[key] = to(value);
    draw();
  };
  const amounts = [[FIRST, `the first ${FIRST}`], [rows.length, `all ${rows.length}`]];
  const controls = el("div", { class: "controls" }, choice("Energy", kinds, state.kind, set("kind", String)));
  if (rows.length > FIRST) controls.append(choice("Rows", amounts, FIRST, set("most", Number)));
  host.append(controls, legendLine(Object.entries(GROUPS).map(([name, paint]) => [patch(paint), name])), stage, tables);
  function draw() {
    const shown = rows.slice(0, state.most).map((row) => [row, histogram(row, state.kind)]);
    const width = widthOf(host, Math.max(1, Math.floor((host.clientWidth + 12) / 268)));
    stage.replaceChildren(...shown.map(([row, found]) => panel(row, found, width)));
    const lines = shown.map(([row, found]) => [row.name, ...Object.keys(GROUPS).map((group) => found?.means[group])]);
    tables.replaceChildren(numbers("Mean energies, from the histograms", ["method", ...Object.keys(GROUPS)], lines));
  }
  return draw;
}

// The histograms of the first seed that has them, and their means; null where none has.
function histogram(row, kind) {
  for (const entry of entriesOf(row)) {
    const series = done(entry, "landscape")?.series ?? {};
    const edges = series[`${kind}edges`];
    if (!edges) continue;
    const found = Object.keys(GROUPS).filter((group) => series[kind + group]?.some(known));
    const shares = Object.fromEntries(found.map((group) => [group, series[kind + group].map((share) => share ?? 0)]));
    const centres = edges.slice(1).map((edge, at) => (edge + edges[at]) / 2);
    const weighted = (values) => values.reduce((sum, share, at) => sum + share * centres[at], 0);
    const total = (values) => values.reduce((sum, share) => sum + share, 0);
    const means = Object.fromEntries(found.map((group) => [group, weighted(shares[group]) / total(shares[group])]));
    return { edges, shares, means, seed: entry.seed };
  }
  return null;
}

function panel(row, found, width) {
  if (!found) return box(note("not measured"), row.name);
  const { edges, shares, means, seed } = found;
  const high = Math.max(...Object.values(shares).flat(), 0);
  const span = { x: [edges[0], edges.at(-1)], y: [0, high * 1.08 || 1] };
  const frame = plot(width, 170, { ...span, title: `Energies of ${row.name}`, left: 34 });
  for (const [group, values] of Object.entries(shares)) {
    const steps = values.flatMap((share, at) => [[edges[at], share], [edges[at + 1], share]]);
    const d = `${path([[edges[0], 0], ...steps, [edges.at(-1), 0]], frame)}Z`;
    const style = { fill: GROUPS[group], stroke: GROUPS[group] };
    frame.marks.append(svg("path", { d, "fill-opacity": 0.28, "stroke-width": 1.5, style }));
  }
  const title = row.entries.length > 1 ? `${row.name}, seed ${seed}` : row.name;
  const lines = Object.entries(means).map(([group, value]) => `mean ${group} ${short(value)}`);
  if (score(row, "energy_overlap")) lines.push(`overlap of clean and adversarial ${said(row, "energy_overlap")}`);
  const { left, right, top, bottom } = frame.inner;
  const area = { x: left, y: top, width: right - left, height: bottom - top, "fill-opacity": 0 };
  frame.marks.append(spoken(svg("rect", area), title, lines));
  return box(frame.picture, title);
}

// --- Training ------------------------------------------------------------------------------------

const TERMS = {
  "Loss and its terms": /^(?!accuracy|validation|energy|gradient|buffer|lr$|epoch$|step$|attempt$)/,
  "Accuracy, %": /^(accuracy|validation)/,
  "Energies, nats": /^energy/,
  "Gradient norm": /^gradient/,
  "Replay buffer": /^buffer/,
  "Learning rate": /^lr$/,
};

function training(host, table) {
  const kept = (row) => entriesOf(row).filter((entry) => entry.training.curves);
  const rows = table.rows.filter((row) => kept(row).length);
  const stage = el("div", { class: "plots" });
  const below = el("div");
  let chosen = 0;
  const change = (value) => {
    chosen = Number(value);
    draw();
  };
  const names = rows.map((row, at) => [at, row.name]);
  host.append(el("div", { class: "controls" }, choice("Method", names, chosen, change)), stage, below);
  function draw() {
    const [{ name }, runs] = [rows[chosen], kept(rows[chosen])];
    const width = widthOf(host, host.clientWidth > 860 ? 2 : 1);
    const logged = [...new Set(runs.flatMap((run) => Object.keys(run.training.curves)))];
    const told = logged.filter((term) => runs.some((run) => run.training.curves[term]?.some((value) => value)));
    const panels = Object.entries(TERMS).map(([title, mine]) => [title, told.filter((term) => mine.test(term))]);
    const drawn = panels.filter(([, terms]) => terms.length);
    stage.replaceChildren(...drawn.map(([title, terms]) => course(title, terms, runs, name, width)));
    const terms = drawn.flatMap(([, found]) => found);
    const first = runs[0].training.curves;
    const lines = first.epoch.map((epoch, at) => [short(epoch), ...terms.map((term) => first[term]?.[at])]);
    const seeds = runs.map((run, at) => `${run.seed} ${["solid", "dashed", "dotted", "dash-dotted"][at % 4]}`);
    below.replaceChildren(
      runs.length > 1 ? note(`Seeds: ${seeds.join(", ")}.`) : "",
      numbers(`Training of ${name}, first seed`, ["epoch", ...terms.map(plain)], lines),
    );
  }
  return draw;
}

function course(title, terms, runs, name, width) {
  const all = runs.flatMap(({ training }) => terms.flatMap((term) => training.curves[term] ?? []));
  const epochs = runs.flatMap(({ training }) => training.curves.epoch);
  const y = title.endsWith("%") ? [0, 100] : range(all, { zero: title === "Gradient norm" });
  const frame = plot(width, 250, { x: [0, Math.max(...epochs)], y, xLabel: "epoch", title: `${title}, ${name}` });
  runs.forEach(({ training: { curves, ...rest }, seed }, at) => {
    frame.marks.append(...collapses(rest).map(([epoch, text]) => fallen(epoch, text, seed, frame)));
    terms.forEach((term, index) => {
      const points = (curves[term] ?? []).map((value, place) => [curves.epoch[place], value]);
      const drawn = points.filter(([, value]) => known(value));
      if (!drawn.length) return;
      const mark = curveLine(path(drawn, frame), colour(index), DASHES[at % DASHES.length]);
      frame.marks.append(hint(mark, `${plain(term)}, seed ${seed}\nin the end ${short(drawn.at(-1)[1])}`));
    });
  });
  return box(frame.picture, title, legendLine(terms.map((term, index) => [patch(colour(index)), plain(term)])));
}

// Epoch and story of every collapse of a training.
function collapses({ interventions, collapse }) {
  const story = (event, end) => `epoch ${short(event.epoch)}: ${event.cause}, ${event.found}; ${end}`;
  const undone = (interventions ?? []).map((event) => [event.epoch, story(event, "put back")]);
  return collapse ? [...undone, [collapse.epoch, story(collapse, "stopped")]] : undone;
}

function fallen(epoch, text, seed, { px, inner }) {
  const mark = line("collapse", px(epoch), inner.top, px(epoch), inner.bottom);
  return spoken(mark, `Collapse, seed ${seed}`, [text]);
}
