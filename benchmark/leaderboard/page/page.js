const root = document.documentElement;
root.classList.add("scripted");

// --- Colours of the page -------------------------------------------------------------------------

const THEMES = [
  ["auto", "◐ Auto", "as the system"],
  ["light", "☀ Light", "light"],
  ["dark", "☾ Dark", "dark"],
];
const themeButton = document.querySelector(".theme");
let theme = 0;
const stored = (value) => {
  try {
    if (value === undefined) return localStorage.getItem("trilemma-theme");
    localStorage.setItem("trilemma-theme", value);
  } catch {
    /* a page opened as a file may have no storage */
  }
  return null;
};
function setTheme(index) {
  theme = index;
  const [name, label, words] = THEMES[index];
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  themeButton.textContent = label;
  themeButton.setAttribute("aria-label", `Colours: ${words}`);
}
setTheme(Math.max(0, THEMES.findIndex(([name]) => name === stored())));
themeButton.addEventListener("click", () => {
  setTheme((theme + 1) % THEMES.length);
  stored(THEMES[theme][0]);
});

// --- Sorting and filtering -----------------------------------------------------------------------

for (const board of document.querySelectorAll(".board")) {
  const leaders = board.querySelector(".leaders");
  if (!leaders) continue;
  const body = leaders.tBodies[0];
  const original = [...body.rows];
  const heads = [...leaders.tHead.rows[0].cells];
  heads.forEach((head, at) =>
    head.querySelector("button").addEventListener("click", () => {
      const numeric = head.dataset.kind === "number";
      const better = meanings(head.dataset.column)?.better;
      const first = numeric && head.dataset.column !== "rank" && !(better < 0) ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now ? (now === "ascending" ? "descending" : "ascending") : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const value = (line) => line.cells[at].dataset.value;
      const sign = order === "ascending" ? 1 : -1;
      body.append(
        ...original.slice().sort((one, other) => {
          const [a, b] = [value(one), value(other)];
          if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
          return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
        }),
      );
    }),
  );
  const form = board.querySelector("form.controls");
  const count = form.querySelector(".count");
  const filter = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    leaders.classList.toggle("every", form.elements.every.checked);
    let shown = 0;
    for (const line of original) {
      const { words: text, method, partial, flagged, autoattack } = line.dataset;
      line.hidden =
        !words.every((word) => text.includes(word)) ||
        (form.elements.method.value && method !== form.elements.method.value) ||
        (form.elements.partial.checked && partial !== undefined) ||
        (form.elements.flagged.checked && flagged !== undefined) ||
        (form.elements.autoattack.checked && autoattack === undefined);
      shown += !line.hidden;
    }
    count.textContent = `${shown} of ${original.length} rows${shown ? "" : ": nothing matches"}`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}
for (const line of document.querySelectorAll("pre.command")) line.replaceWith(command(line.textContent));

// --- Which table is shown, and drawing what is on the screen -------------------------------------

const CHARTS = { tradeoff, cascade, marginal, curves, energies, training };
const boards = [...document.querySelectorAll(".board")];
const redraws = new Map();
function draw(host) {
  if (!redraws.has(host)) {
    const table = data.tables.find((candidate) => candidate.id === host.closest(".board").id);
    redraws.set(host, CHARTS[host.dataset.chart](host, table));
  }
  redraws.get(host)();
}
const waiting = new IntersectionObserver(
  (seen) => {
    for (const { target, isIntersecting } of seen) {
      if (isIntersecting) {
        waiting.unobserve(target);
        draw(target);
      }
    }
  },
  { rootMargin: "600px" },
);
const hosts = [...document.querySelectorAll("[data-chart]")];
hosts.forEach((host) => waiting.observe(host));
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  for (const host of redraws.keys()) if (host.clientWidth) draw(host);
});
addEventListener("beforeprint", () => hosts.filter((host) => host.clientWidth).forEach(draw));

function showTable() {
  const hash = decodeURIComponent(location.hash.slice(1));
  const target = document.getElementById(hash);
  const chosen =
    target?.closest(".board") ??
    (boards.find((board) => !board.hidden && boards.some((other) => other.hidden)) || boards[0]);
  for (const board of boards) board.hidden = board !== chosen;
  for (const link of document.querySelectorAll("[data-table]")) {
    if (link.dataset.table === chosen.id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  if (target && target !== chosen) target.scrollIntoView();
}
addEventListener("hashchange", showTable);
showTable();

let asked = false;
function markSection() {
  asked = false;
  const board = boards.find((candidate) => !candidate.hidden);
  const line = innerHeight * 0.3;
  const here = [...board.querySelectorAll(".part")].filter((part) => part.getBoundingClientRect().top < line).at(-1);
  for (const link of board.querySelectorAll(".contents a")) {
    const current = here && link.hash === `#${here.id}`;
    if (current === link.hasAttribute("aria-current")) continue;
    if (!current) link.removeAttribute("aria-current");
    else {
      link.setAttribute("aria-current", "true");
      link.closest("ul").scrollTo({ left: link.offsetLeft - 60 });
    }
  }
  if (!here) board.querySelector(".contents ul").scrollTo({ left: 0 });
}
addEventListener(
  "scroll",
  () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(markSection);
    }
  },
  { passive: true },
);
markSection();
