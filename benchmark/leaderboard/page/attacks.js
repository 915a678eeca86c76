// --- Attacks -------------------------------------------------------------------------------------

const ATTACKS = { apgd_ce: "APGD-CE", apgd_dlr: "APGD-DLR", apgd_t: "APGD-T", fab_t: "FAB-T", square: "Square" };
const BROKEN = ["var(--c7)", "var(--c4)", "var(--c5)", "var(--c2)", "var(--c3)", "var(--c6)"];

function cascade(host, table) {
  const measured = (row) => entriesOf(row).map((entry) => done(entry, "autoattack")).filter(Boolean);
  const rows = table.rows.filter((row) => measured(row).length);
  const named = rows.flatMap((row) => measured(row).flatMap((found) => Object.keys(found.values)));
  const keys = [...new Set(named)].filter((key) => key.startsWith("after_"));
  const last = [...keys].reverse();
  const parts = [
    ["withstands all", "var(--c1)"],
    ...last.map((key, at) => [`broken first by ${ATTACKS[key.slice(6)] ?? key.slice(6)}`, BROKEN[at % BROKEN.length]]),
    ["misclassified without attack", "var(--line)"],
  ];
  // Percent of the test images in each part; empty where an entry does not say.
  const shares = (row) => {
    const left = ["clean_accuracy", ...keys].map((key) => {
      const found = measured(row).map(({ values }) => values[key]).filter(known);
      return found.length ? mean(found) : null;
    });
    if (!left.every(known)) return [];
    return [left.at(-1), ...last.map((_, at) => left[keys.length - at - 1] - left[keys.length - at]), 100 - left[0]];
  };
  const bar = (row, px, y) => {
    const found = shares(row);
    if (!found.length) return words("cascade not recorded", px(0), y + 4, "start");
    let from = 0;
    const group = svg("g");
    found.forEach((share, at) => {
      const size = Math.max(0.5, px(share) - px(0) - 0.75);
      const area = { x: px(from), y: y - 9, width: size, height: 18 };
      if (share > 0) group.append(svg("rect", { class: "segment", style: { fill: parts[at][1] }, ...area }));
      from += share;
    });
    return spoken(group, row.name, parts.map(([text], at) => `${text} ${short(found[at])} %`));
  };
  return () =>
    host.replaceChildren(
      legendLine(parts.map(([text, paint]) => [patch(paint), text])),
      box(lanes(widthOf(host), rows, "AutoAttack's cascade", bar)),
      numbers(
        "Cascade: share of the test images, percent",
        ["method", ...parts.map(([text]) => text)],
        rows.map((row) => [row.name, ...parts.map((_, at) => shares(row)[at])]),
      ),
    );
}

function marginal(host, table) {
  const alone = (name) => name.startsWith("marginal_");
  const others = ["autoattack", "eot_pgd", "transfer"];
  const named = table.columns.filter((name) => alone(name) || others.includes(name));
  const names = named.filter((name) => table.rows.some((row) => score(row, name)));
  const rows = table.rows.filter((row) => names.some((name) => alone(name) && score(row, name)));
  const titles = { marginal_worst: "worst case", autoattack: "AutoAttack (cascade)", eot_pgd: "EOT-PGD" };
  const title = (name) => titles[name] ?? ATTACKS[name.slice(9)] ?? name;
  const marks = (row, px, y) => {
    const found = names.map((name) => score(row, name)?.mean);
    const present = found.filter(known);
    const group = svg("g", {}, line("axis", px(Math.min(...present)), y, px(Math.max(...present)), y));
    found.forEach((share, at) => known(share) && group.append(symbol(at, px(share), y)));
    return spoken(group, row.name, names.map((name) => `${title(name)} ${said(row, name)}`));
  };
  return () =>
    host.replaceChildren(
      legendLine(names.map((name, at) => [icon("0 -2 24 16", symbol(at, 12, 6)), title(name)])),
      box(lanes(widthOf(host), rows, "Accuracy under each attack alone", marks)),
      numbers(
        "Accuracy under each attack alone, percent",
        ["method", ...names.map(title)],
        rows.map((row) => [row.name, ...names.map((name) => said(row, name))]),
      ),
    );
}

const CORNERS = [
  "-5,-5 5,-5 5,5 -5,5",
  "0,-6.5 6.5,0 0,6.5 -6.5,0",
  "0,-6 6,5 -6,5",
  "0,6 6,-5 -6,-5",
  "-2,-6 2,-6 2,-2 6,-2 6,2 2,2 2,6 -2,6 -2,2 -6,2 -6,-2 -2,-2",
  "0,-6 5.7,-1.9 3.5,4.9 -3.5,4.9 -5.7,-1.9",
  "-2,-9 2,-9 2,9 -2,9",
];
// Colour and form of the n-th attack: a circle, then the polygons.
function symbol(at, x, y) {
  const style = { fill: colour(at), stroke: "var(--card)", "stroke-width": "1" };
  const attributes = { class: "segment", style, transform: `translate(${x} ${y})` };
  const form = at % (CORNERS.length + 1);
  return form ? svg("polygon", { ...attributes, points: CORNERS[form - 1] }) : svg("circle", { ...attributes, r: 5.5 });
}
