// The table of sentences: search, order, pages, and opening one.

const PAGE_SIZES = [25, 50, 100];
const COLUMNS = [
  { key: "n", label: "Sentence", value: (s) => s.n },
  { key: "text", label: "Reference and output", value: (s) => s.ref },
  { key: "bleu", label: "BLEU", digits: 1, title: "sentence BLEU, effective order" },
  { key: "chrf", label: "chrF", digits: 1 },
  { key: "wer", label: "WER", digits: 1, title: "word error rate in percent; lower is better" },
  { key: "words", label: "Words", digits: 0, title: "words of the reference" },
  { key: "seconds", label: "Seconds", digits: 1, title: "length of the signing" },
  { key: "score", label: "Log prob", digits: 2, title: "the model's own score: log probability, normalised by length" },
].filter((c) => ["n", "text"].includes(c.key) || DATA.sentences.some((s) => s[c.key] !== null));

const sentences = DATA.sentences.map((s, n) => ({ ...s, n }));
const evidence = new Map((DATA.evidence ? DATA.evidence.sentences : []).map((e) => [e.id, e]));
const state = { query: "", order: "worst", descending: false, page: 0, size: PAGE_SIZES[0], strips: false, errors: false };
let ranks = shuffled(sentences.length, 7);
let found = [];
const open = new Set();
const detailBuilt = new Map();

const VIEWS = {
  worst: { label: "Worst first", compare: (a, b) => a.chrf - b.chrf || b.wer - a.wer || a.n - b.n },
  best: { label: "Best first", compare: (a, b) => b.chrf - a.chrf || a.wer - b.wer || b.words - a.words || a.n - b.n },
  random: { label: "Random", compare: (a, b) => ranks[a.n] - ranks[b.n] },
};

/** A permutation of 0..count-1, the same for the same seed in every browser. */
function shuffled(count, seed) {
  const numbers = Array.from({ length: count }, (_, i) => i);
  let state32 = seed >>> 0;
  for (let i = count - 1; i > 0; i--) {
    state32 = (Math.imul(state32, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state32 / 2 ** 32) * (i + 1));
    [numbers[i], numbers[j]] = [numbers[j], numbers[i]];
  }
  return numbers;
}

function folded(text) {
  return text.normalize("NFKC").toLowerCase();
}

function compare(a, b) {
  if (state.order in VIEWS) return VIEWS[state.order].compare(a, b);
  const column = COLUMNS.find((c) => c.key === state.order);
  const [x, y] = [a, b].map(column.value || ((s) => s[column.key]));
  // what is unknown stands last, whichever way
  if (x === null || y === null) return (x === null) - (y === null) || a.n - b.n;
  const sign = typeof x === "string" ? x.localeCompare(y) : x - y;
  return (state.descending ? -sign : sign) || a.n - b.n;
}

function select() {
  const words = folded(state.query).split(/\s+/).filter(Boolean);
  found = sentences.filter((s) => {
    if (state.strips && !evidence.has(s.id)) return false;
    if (state.errors && !s.diff) return false;
    if (!words.length) return true;
    s.hay ??= folded(`${s.id}\n${s.ref}\n${s.hyp}`);
    return words.every((word) => s.hay.includes(word));
  });
  found.sort(compare);
}

/** The sides of the word alignment: what the reference has and the output lacks, and the other way round. */
function marked(s, side) {
  if (!s[side]) return [el("em", { class: "muted" }, "(nothing)")];
  if (!s.diff) return [s[side]];
  const pieces = [];
  for (const [op, ref, hyp] of s.diff) {
    const text = side === "ref" ? ref : hyp;
    if (!text) continue;
    if (pieces.length) pieces.push(" ");
    pieces.push(op === "equal" ? text : el(side === "ref" ? "del" : "ins", {}, text));
  }
  return pieces;
}

function row(s) {
  const opened = open.has(s.n);
  const button = el("button", {
    type: "button", class: "opener", "aria-expanded": opened, "aria-controls": `detail-${s.n}`, id: `open-${s.n}`,
  }, el("bdi", {}, s.id));
  const e = evidence.get(s.id);
  const badge = e ? el("span", { class: "badge" }, e.strip ? "strip" : "words over time") : null;
  const line = (who, side) => el("p", { lang: s.lang || null },
    el("span", { class: "who", lang: "en" }, who), el("span", { dir: "auto", class: side }, marked(s, side)));
  const cells = COLUMNS.slice(2).map((c) =>
    el("td", { role: "cell", class: "number", "data-label": c.label }, shown(s[c.key], c.digits)));
  const tr = el("tr", { role: "row", class: "row" },
    el("td", { role: "cell", class: "first" }, button, badge),
    el("td", { role: "cell", class: "texts" }, line("ref", "ref"), line("out", "hyp")),
    cells);
  tr.addEventListener("click", (event) => {
    if (event.target.closest("a") || String(getSelection())) return; // text is being copied
    toggle(s, tr, button);
  });
  return tr;
}

function toggle(s, tr, button) {
  if (open.delete(s.n)) {
    tr.nextElementSibling.remove();
  } else {
    open.add(s.n);
    tr.after(detailRow(s));
    detailBuilt.get(s.n)?.();
  }
  button.setAttribute("aria-expanded", open.has(s.n));
}

function detailRow(s) {
  const cell = el("td", { role: "cell", colspan: COLUMNS.length });
  const tr = el("tr", { role: "row", class: "detail", id: `detail-${s.n}` }, cell);
  const [content, placed] = sentenceDetail(s, evidence.get(s.id));
  cell.append(content);
  detailBuilt.set(s.n, placed);
  return tr;
}

function draw() {
  const pages = Math.max(1, Math.ceil(found.length / state.size));
  state.page = Math.min(state.page, pages - 1);
  const first = state.page * state.size;
  const slice = found.slice(first, first + state.size);
  const body = document.getElementById("rows");
  detailBuilt.clear();
  body.replaceChildren(...slice.flatMap((s) => (open.has(s.n) ? [row(s), detailRow(s)] : [row(s)])));
  detailBuilt.forEach((placed) => placed());
  if (!slice.length) {
    body.append(el("tr", { role: "row" }, el("td", { role: "cell", colspan: COLUMNS.length, class: "empty" },
      "No sentence fits. Search in references, outputs and ids; all words must occur.")));
  }
  const range = found.length ? `${first + 1}–${first + slice.length} of ${found.length}` : "0";
  const of = found.length === sentences.length ? "" : ` found among ${sentences.length}`;
  document.getElementById("status").textContent = `${range} sentences${of}`;
  for (const [id, off] of [["first", state.page === 0], ["previous", state.page === 0],
    ["next", state.page >= pages - 1], ["last", state.page >= pages - 1]]) {
    document.getElementById(id).disabled = off;
  }
  document.querySelectorAll("#table th").forEach((th) => {
    if (th.dataset.key !== state.order) th.removeAttribute("aria-sort");
    else th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
  });
  document.querySelectorAll("[data-view]").forEach((button) => {
    button.setAttribute("aria-pressed", button.dataset.view === state.order);
  });
}

function refresh() {
  state.page = 0;
  select();
  draw();
}

function turn(to) {
  const last = Math.max(0, Math.ceil(found.length / state.size) - 1);
  state.page = { first: 0, previous: state.page - 1, next: state.page + 1, last }[to];
  draw();
  document.getElementById("table").scrollIntoView({ block: "start" });
}

function build() {
  let typing;
  const search = el("input", {
    type: "search", id: "search", placeholder: "Search references, outputs, ids", "aria-label": "Search sentences",
    autocomplete: "off", spellcheck: "false",
    oninput: () => {
      clearTimeout(typing);
      typing = setTimeout(() => { state.query = search.value; refresh(); }, 120);
    },
  });
  const views = el("div", { class: "group", role: "group", "aria-label": "Order" },
    Object.entries(VIEWS).map(([name, view]) => el("button", {
      type: "button", "data-view": name, "aria-pressed": "false",
      onclick: () => {
        if (name === "random" && state.order === "random") ranks = shuffled(sentences.length, Date.now());
        state.order = name;
        refresh();
      },
    }, view.label)));
  const check = (key, label) => {
    const box = el("input", { type: "checkbox", onchange: () => { state[key] = box.checked; refresh(); } });
    return el("label", { class: "check" }, box, label);
  };
  const size = el("select", { "aria-label": "Sentences a page", onchange: () => { state.size = Number(size.value); refresh(); } },
    PAGE_SIZES.map((n) => el("option", { value: n }, `${n} a page`)));
  const head = COLUMNS.map((c) => el("th", { role: "columnheader", scope: "col", "data-key": c.key, class: c.digits === undefined ? null : "number" },
    el("button", {
      type: "button", title: c.title,
      onclick: () => {
        // numbers begin with the worst: low BLEU, high WER
        const natural = ["wer", "words", "seconds"].includes(c.key);
        state.descending = state.order === c.key ? !state.descending : natural;
        state.order = c.key;
        refresh();
      },
    }, c.label)));
  const pager = [["first", "First"], ["previous", "Previous"], ["next", "Next"], ["last", "Last"]].map(([id, label]) =>
    el("button", { type: "button", id, onclick: () => turn(id) }, label));
  document.getElementById("sentence-table").replaceChildren(
    el("div", { class: "controls" }, search, views,
      evidence.size ? check("strips", "with words over time") : null, check("errors", "with errors")),
    el("p", { class: "legend" }, el("del", {}, "word"), " of the reference is missing or another in the output; ",
      el("ins", {}, "word"), " of the output is not in the reference. Open a sentence for alternatives",
      evidence.size ? " and, where marked, its words over time." : "."),
    el("table", { id: "table", role: "table", "aria-label": "Sentences" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head)),
      el("tbody", { id: "rows", role: "rowgroup" })),
    el("div", { class: "pager" }, el("span", { class: "status", id: "status", role: "status" }), pager, size));
  refresh();
}

build();
