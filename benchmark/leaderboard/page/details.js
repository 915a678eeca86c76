// --- How a number was made -----------------------------------------------------------------------

const dialog = document.querySelector("dialog.details");
const UNKNOWN = "not recorded";

function pairs(object) {
  const text = (value) => (typeof value === "object" && value !== null ? JSON.stringify(value) : value);
  const found = Object.entries(object ?? {}).map(([key, value]) => `${key} ${text(value)}`);
  return found.join(", ") || "none";
}
function list(items) {
  const told = items.filter(([, value]) => value);
  const lines = told.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  return el("dl", { class: "legend" }, ...lines);
}
function command(text) {
  const code = el("code", {}, text);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  };
  const button = el("button", { type: "button", class: "copy", on: { click: copy } }, "Copy");
  return el("pre", { class: "command" }, code, button);
}
const folded = (title, ...content) => el("details", {}, el("summary", {}, title), ...content);

function details(table, row, name) {
  const runs = row.entries.map((file) => [file, data.entries[file]]);
  const closing = { type: "button", class: "close", "aria-label": "Close", autofocus: true };
  const close = el("button", { ...closing, on: { click: () => dialog.close() } }, "✕");
  const title = el("div", {}, el("h2", { id: "details-title" }, row.name), el("p", {}, table.title));
  dialog.replaceChildren(
    el("header", {}, title, close),
    el(
      "div",
      { class: "body" },
      ...(meanings(name) ? number(row, runs, name) : []),
      ...quoted(row, name),
      el("h3", {}, "Compare and repeat"),
      ...(row.compare ? [el("p", {}, "Compare it, image by image:"), command(row.compare)] : []),
      el("p", {}, "Train and measure it again:"),
      command(row.repeat),
      ...runs.map(([file, run], at) => record(file, run, meanings(name)?.metric, at === 0 || name === "flags")),
    ),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
}

function number(row, runs, name) {
  const { metric, value, meaning } = meanings(name);
  const lines = runs.map(([, run]) => {
    const found = run.measurements[metric];
    if (!found) return [run.seed ?? "none", "not measured", "", ""];
    const shown = found.status === "failed" ? `failed: ${found.error}` : (found.values[value] ?? "none");
    return [run.seed ?? "none", String(shown), String(found.n), found.seconds.toFixed(1)];
  });
  const bounds = row.intervals[name]?.map((bound) => bound.toFixed(1)).join(" to ");
  return [
    el("p", { class: "figure" }, said(row, name)),
    el("p", {}, `${name}: ${meaning}.${bounds ? ` 95 % interval ${bounds}.` : ""}`),
    grid("By seed", ["seed", name, "images", "seconds"], lines),
  ];
}

// What publications say of this number, or of every one of the row; never subtracted without what sets the two apart.
function quoted(row, name) {
  const found = Object.entries(row.reported).filter(([metric]) => !meanings(name) || metric === name);
  const lines = found.flatMap(([metric, numbers]) =>
    numbers.map((one) => [`${metric} ${one.value}`, one.difference, one.origin, one.terms, one.caveat]),
  );
  const heads = ["reported", "reproduced minus reported", "source", "of what, and how measured", "caveat"];
  if (!lines.length) return [note("No publication is quoted beside it.")];
  return [el("h3", {}, "Reported"), grid("Reported", heads, lines)];
}

function record(file, run, metric, open) {
  const own = run.measurements[metric];
  const measured = Object.entries(run.measurements);
  const flags = [["subject", run.subject], ...measured].flatMap(([where, found]) =>
    found.flags.map((text) => el("li", { class: "flag" }, `${where}: ${text}`)),
  );
  const values = ([name, found]) => [name, found.status === "failed" ? `failed: ${found.error}` : pairs(found.values)];
  const settings = run.training.settings;
  return fill(
    folded(
      run.seed === null ? "The record" : `Seed ${run.seed}: the record`,
      list([
        ["Entry", el("a", { href: run.link }, file)],
        ...(own ? [["Metric", `${metric}, version ${own.version}; settings: ${pairs(own.config)}`]] : []),
        ...(own ? [["Values", pairs(own.values)]] : []),
        ...provenance(run),
        ...trained(run),
      ]),
      note(run.evidence ? "Check every accuracy against the evidence:" : "The entry has no evidence to verify."),
      run.evidence ? command(`python -m benchmark verify leaderboards/${file}`) : null,
      el("h3", {}, "Flags, verbatim"),
      flags.length ? el("ul", { class: "flags" }, ...flags) : note("None."),
      own?.checks?.length ? checks(own.checks) : null,
      folded("Everything measured", list(measured.map(values))),
      settings ? folded("Settings of the training", el("pre", {}, JSON.stringify(settings, null, 2))) : null,
    ),
    { open },
    [],
  );
}

function provenance({ protocol, data: images, partial, provenance: from, subject, evidence }) {
  const commit = `commit ${from.commit ?? UNKNOWN}${from.dirty ? ", with uncommitted changes" : ""}`;
  const split = `test split SHA-256 ${images.digests.test ?? UNKNOWN}`;
  return [
    ["Protocol", `${protocol.id}, hash ${protocol.hash}, ${protocol.role}`],
    ["Images", `${images.n} of ${images.of}${partial ? ", partial" : ""}; ${split}`],
    ["Evaluated by", `${commit}; ${from.device ?? `device ${UNKNOWN}`}; Python ${from.python ?? UNKNOWN}`],
    ["Versions", pairs(from.versions)],
    ["Model", `${subject.architecture}, ${subject.parameters} parameters, ${subject.which ?? "external"}`],
    ["Weights", `SHA-256 ${subject.weights_digest}`],
    ["Evidence", evidence ? `SHA-256 ${evidence}` : "no bundle recorded"],
  ];
}

function trained({ training, config_digest: digest, overrides }) {
  const { epochs, steps, seconds, precision, budget, best, restarts } = training;
  const length = `${short(epochs)} epochs, ${steps} steps, ${seconds} s, ${precision}`;
  const fallen = collapses(training).map(([, text]) => text);
  return [
    ["Settings", digest ? `SHA-256 ${digest}` : "none: not trained here"],
    ["Overrides", overrides.join("; ") || "none"],
    ["Training", epochs === undefined ? UNKNOWN : [length, budget].filter(Boolean).join("; ")],
    ["Selected", best ? `epoch ${best.epoch}, validation ${pairs(best.validation)}` : UNKNOWN],
    ["Collapses", fallen.join("; ") || (restarts === undefined ? UNKNOWN : "none")],
  ];
}

function checks(found) {
  const outcome = ({ passed }) => (passed === null ? "does not apply" : passed ? "passed" : "failed");
  const lines = found.map((one) => [one.name, outcome(one), short(one.measured), short(one.bound), one.meaning]);
  return grid("Checks", ["check", "outcome", "measured", "held against", "meaning"], lines);
}

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
const owner = new Map(data.tables.flatMap((table) => table.rows.map((row) => [row.entries[0], [table, row]])));
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-row]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !owner.has(link.dataset.row)) return;
  event.preventDefault();
  details(...owner.get(link.dataset.row), link.dataset.column);
});
for (const link of document.querySelectorAll("a[data-row]")) link.setAttribute("aria-haspopup", "dialog");
