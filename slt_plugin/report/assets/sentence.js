// One opened sentence: texts, alternatives, and what each output word rests on.

/** [element, function to call once it is on the page and has a width] */
function sentenceDetail(s, e) {
  const heading = (text) => el("h3", {}, text);
  const facts = [
    ["Sentence BLEU", shown(s.bleu, 1)], ["chrF", shown(s.chrf, 1)], ["WER", shown(s.wer, 1)],
    ["log probability", shown(s.score, 3)], s.seconds === null ? null : ["length", seconds(s.seconds)],
    ...Object.entries(s.more || {}),
  ].filter(Boolean).map(([name, value]) => `${name} ${value}`).join(" · ");
  const texts = el("div", { class: "texts-full", lang: s.lang || null },
    el("p", {}, el("span", { class: "muted small", lang: "en" }, "reference "), el("bdi", {}, s.ref)),
    el("p", {}, el("span", { class: "muted small", lang: "en" }, "output "), s.hyp ? el("bdi", {}, s.hyp) : el("em", {}, "(nothing)")),
    el("p", { class: "muted small", lang: "en" }, facts));
  const parts = [texts];
  let placed = () => {};
  if (e) {
    const [element, ready] = timeView(s, e);
    parts.push(element);
    placed = ready;
  }
  if (s.alternatives) {
    parts.push(el("div", {}, heading("Alternatives"),
      el("ol", { class: "alternatives" }, s.alternatives.map((a) =>
        el("li", {}, el("bdi", { lang: s.lang || null }, a.text), el("span", { class: "number" }, shown(a.score, 3)))))));
  }
  if (!e && DATA.evidence) {
    parts.push(el("p", { class: "muted small" },
      `Words over time were computed for ${evidence.size} chosen sentences; this is not among them.`));
  }
  return [el("div", { class: "opened" }, parts), placed];
}

function timeView(s, e) {
  const strip = e.strip;
  const stage = strip ? (strip.kind === "skeleton" ? skeletonStage(strip) : frameStage(strip)) : null;
  const told = el("p", { class: "told", "aria-live": "polite" });
  const timeline = new Timeline(s, e, told, stage);
  const why = { worst: "one of the worst", best: "one of the best", random: "drawn at random" }[e.why];
  const below = el("div", { class: "below" },
    el("span", {}, why ? `This sentence is ${why}.` : ""),
    e.saliency ? timeline.fineButton : null,
    e.saliency ? el("span", {}, "saliency: little ", el("span", { class: "ramp" }), " much") : null);
  const right = el("div", {}, timeline.element, told, below, wordTable(e));
  const root = el("div", {}, el("h3", {}, "Words over time"),
    stage ? el("div", { class: "viewer" }, stage.element, right) : right);
  return [root, () => timeline.place()];
}

function wordTable(e) {
  if (!e.words.length) return null;
  const body = e.words.map((w) => el("tr", {},
    el("th", { scope: "row" }, el("bdi", {}, w.word)),
    el("td", { class: "number" }, `${w.start.toFixed(2)}–${w.end.toFixed(2)} s`),
    el("td", { class: "number" }, shown(w.drop, 2)), el("td", { class: "number" }, shown(w.random_drop, 2)),
    el("td", {}, w.faithful ? "✓ yes" : "✗ no")));
  const head = [["word", ""], ["rests on", "number"], ["loss when hidden", "number"], ["random stretch hidden", "number"],
    ["passes the test", ""]].map(([text, kind]) => el("th", { scope: "col", class: kind || null }, text));
  return el("details", {}, el("summary", {}, "The same as a table"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Words and their stretches" },
      el("table", { class: "small" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body))),
    el("p", { class: "muted small" }, "Losses in nats of the word's log probability."));
}

// ---- pictures ----

const PARTS = ["body", "face", "left_hand", "right_hand"];
const HANDS = ["left_hand", "right_hand"];
const named = (name) => name.replaceAll("_", " ").replace(".", " ");

/** Lines of one part at one time as an SVG path; `place` maps [x, y] to the picture. */
function bones(strip, time, part, place) {
  const points = strip.points[time];
  let path = "";
  for (const [a, b] of strip.edges) {
    if (strip.parts[a] !== part || !points[a] || !points[b]) continue;
    const [p, q] = [place(points[a]), place(points[b])];
    path += `M${p[0].toFixed(1)} ${p[1].toFixed(1)}L${q[0].toFixed(1)} ${q[1].toFixed(1)}`;
  }
  return path;
}

function skeletonAt(strip, time, size, width) {
  const place = ([x, y]) => [x * size, y * size];
  return PARTS.map((part) => [part, bones(strip, time, part, place)]).filter(([, path]) => path)
    .map(([part, path]) => svg("path", { class: `bone ${part}`, d: path, "stroke-width": part === "body" ? width : width * 0.7 }));
}

function handPoints(strip, time, part) {
  return strip.points[time].filter((p, i) => p && strip.parts[i] === part);
}

function middle(points) {
  const span = (k) => { const v = points.map((p) => p[k]); return [Math.min(...v), Math.max(...v)]; };
  const [[x0, x1], [y0, y1]] = [span(0), span(1)];
  return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, side: Math.max(x1 - x0, y1 - y0) };
}

/** Hands that are there at any time, with the side of a square that holds each at all times. */
function handSizes(strip) {
  const sizes = {};
  for (const part of HANDS) {
    const sides = strip.times.map((_, t) => handPoints(strip, t, part)).filter((p) => p.length > 3).map((p) => middle(p).side);
    if (sides.length) sizes[part] = Math.max(...sides) * 1.12 || 1;
  }
  return sizes;
}

function handAt(strip, time, part, side, size, width) {
  const points = handPoints(strip, time, part);
  if (points.length < 4) return null;
  const m = middle(points);
  const place = ([x, y]) => [((x - m.x) / side + 0.5) * size, ((y - m.y) / side + 0.5) * size];
  return svg("path", { class: `bone ${part}`, d: bones(strip, time, part, place), "stroke-width": width });
}

/** Slider and play button of the large picture: `show(index)` for others to call, `onshow(index)` for others to hear. */
function transport(strip, draw) {
  const last = strip.times.length - 1;
  const time = el("span", { class: "time" });
  const slider = el("input", { type: "range", min: 0, max: last, step: 1, value: 0, "aria-label": "Time" });
  let timer = null;
  const stage = { index: 0, onshow: () => {}, show };
  const play = el("button", { type: "button", "aria-label": "Play", onclick: () => (timer ? stop() : start()) }, "▶");
  function show(index) {
    stage.index = index;
    slider.value = index;
    slider.setAttribute("aria-valuetext", seconds(strip.times[index]));
    time.textContent = seconds(strip.times[index]);
    draw(index);
    stage.onshow(index);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play");
  }
  function start() {
    const length = last > 0 ? ((strip.times[last] - strip.times[0]) / last) * 1000 : 300;
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
    if (Number(slider.value) >= last) show(0);
    timer = setInterval(() => {
      if (!play.isConnected || Number(slider.value) >= last) stop();
      else show(Number(slider.value) + 1);
    }, Math.max(120, length));
  }
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  stage.controls = el("div", { class: "transport" }, play, slider, time);
  return stage;
}

function skeletonStage(strip) {
  const figure = svg("svg", { class: "figure", viewBox: "0 0 240 240", role: "img", "aria-label": "Skeleton of the signer at the chosen time" });
  const sizes = handSizes(strip);
  const hands = Object.keys(sizes).map((part) =>
    [part, svg("svg", { viewBox: "0 0 100 100", role: "img", "aria-label": `${named(part)}, enlarged` })]);
  const stage = transport(strip, (index) => {
    figure.replaceChildren(...skeletonAt(strip, index, 240, 4));
    for (const [part, picture] of hands) picture.replaceChildren(...[handAt(strip, index, part, sizes[part], 100, 3)].filter(Boolean));
  });
  stage.element = el("div", { class: "stage" }, figure,
    el("div", { class: "hands" }, hands.map(([part, picture]) => el("div", {}, picture, named(part)))), stage.controls);
  stage.show(Math.floor(strip.times.length / 2));
  return stage;
}

function frameStage(strip) {
  const picture = el("img", { alt: "Frame of the signing at the chosen time" });
  const stage = transport(strip, (index) => { picture.src = strip.images[index]; });
  stage.element = el("div", { class: "stage" }, picture, stage.controls);
  stage.show(Math.floor(strip.times.length / 2));
  return stage;
}
