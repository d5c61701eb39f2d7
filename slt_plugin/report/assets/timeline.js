// Strip, words and saliency over one axis of time; a word shows the stretch of signing that it rests on.

const LEAST_WIDTH = 620; // narrower screens scroll inside of the timeline
const CELL = 58; // least width of a picture
const BODY_ROW = 84, HAND_ROW = 54, AXIS_ROW = 20, WORD_ROW = 30, PART_ROW = 20, LANDMARK_ROW = 12;
const SHORT = { "left hand": "L", "right hand": "R", body: "", face: "face" }; // beside a row of a landmark

class Timeline {
  constructor(s, e, told, stage) {
    Object.assign(this, { e, told, stage, pinned: null, fine: false, width: 0 });
    const ends = [e.seconds || 0, ...e.words.map((w) => w.end), ...(e.strip ? e.strip.times : []), ...(e.saliency ? e.saliency.times : [])];
    this.seconds = Math.max(...ends, 1e-3);
    this.gutter = el("div", { class: "gutter", "aria-hidden": "true" });
    this.canvas = el("div", { class: "canvas" });
    this.lane = el("div", { class: "lane", role: "region", tabindex: "0", "aria-label": `Words over time of ${s.id}; scrolls sideways` }, this.canvas);
    this.element = el("div", { class: "timeline" }, this.gutter, this.lane);
    this.stretch = el("div", { class: "stretch", hidden: true });
    this.cursor = el("div", { class: "cursor", hidden: !stage });
    if (stage) stage.onshow = (index) => this.point(index);
    this.fineButton = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
      this.fine = !this.fine;
      this.fineButton.setAttribute("aria-pressed", this.fine);
      this.layOut();
    } }, "Each landmark");
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { this.pinned = null; this.show(null); this.press(); }
    });
    this.rest();
  }

  /** To be called when the element is on the page; follows its width from then on. */
  place() {
    new ResizeObserver(() => {
      const width = Math.max(this.lane.clientWidth, LEAST_WIDTH);
      if (width !== this.width) { this.width = width; this.layOut(); }
    }).observe(this.lane);
  }

  x(time) {
    return (time / this.seconds) * this.width;
  }

  layOut() {
    const rows = [...this.strip(), this.axis(), this.words(), ...this.saliency()].filter(Boolean);
    this.canvas.style.width = `${this.width}px`;
    this.canvas.replaceChildren(...rows.map((r) => r.element), this.stretch, this.cursor);
    if (this.stage) this.point(this.stage.index);
    this.gutter.replaceChildren(...rows.flatMap((r) => r.labels.map(([text, height]) => {
      const label = el("div", { class: height < PART_ROW ? "fine" : null, title: text }, height < PART_ROW ? this.short(text) : text);
      label.style.height = `${height}px`;
      label.style.lineHeight = height <= PART_ROW ? `${height}px` : "";
      return label;
    })));
    this.show(this.pinned);
    this.press();
  }

  /** Which of the strip's pictures fit beside each other, as [index, left, width]. */
  cells(times) {
    const fit = Math.max(1, Math.min(times.length, Math.floor(this.width / CELL)));
    const width = this.width / fit;
    return Array.from({ length: fit }, (_, k) => {
      const at = ((k + 0.5) / fit) * this.seconds;
      let nearest = 0;
      times.forEach((t, i) => { if (Math.abs(t - at) < Math.abs(times[nearest] - at)) nearest = i; });
      return [nearest, k * width, width];
    });
  }

  strip() {
    const strip = this.e.strip;
    if (!strip) return [];
    const cells = this.cells(strip.times);
    if (strip.kind === "frames") {
      const frames = el("div", { class: "frames" }, cells.map(([i]) => el("img", { src: strip.images[i], alt: "", height: BODY_ROW })));
      return [{ element: frames, labels: [[strip.blurred ? "frames, faces blurred" : "frames", BODY_ROW]] }];
    }
    const sizes = handSizes(strip);
    const label = "The signer's skeleton over time; the enlarged hands below it";
    const hands = Object.keys(sizes);
    const height = BODY_ROW + hands.length * HAND_ROW;
    const picture = svg("svg", { class: "skeleton", width: this.width, height, role: "img", "aria-label": label });
    for (const [i, left, width] of cells) {
      const size = Math.min(width, BODY_ROW) - 4;
      picture.append(svg("g", { transform: `translate(${left + (width - size) / 2} ${(BODY_ROW - size) / 2})` }, skeletonAt(strip, i, size, 1.8)));
      hands.forEach((part, k) => {
        const hand = Math.min(width, HAND_ROW) - 6;
        picture.append(svg("g", { transform: `translate(${left + (width - hand) / 2} ${BODY_ROW + k * HAND_ROW + 3})` },
          [handAt(strip, i, part, sizes[part], hand, 1.4)].filter(Boolean)));
      });
    }
    return [{ element: picture, labels: [["skeleton", BODY_ROW], ...hands.map((part) => [named(part), HAND_ROW])] }];
  }

  axis() {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60].find((s) => this.x(s) > 52) || 120;
    const axis = svg("svg", { class: "axis", width: this.width, height: AXIS_ROW, "aria-hidden": "true" });
    for (let t = 0; t <= this.seconds + 1e-9; t += step) {
      axis.append(svg("line", { x1: this.x(t), x2: this.x(t), y1: 0, y2: 5 }));
      axis.append(svg("text", { x: Math.min(this.x(t) + 3, this.width - 24), y: 14 }, `${Number(t.toFixed(1))} s`));
    }
    return { element: axis, labels: [["time", AXIS_ROW]] };
  }

  words() {
    const free = []; // right end of what stands in each line
    this.buttons = this.e.words.map((w) => {
      const [from, to] = [this.x(w.start), this.x(w.end)];
      const width = Math.min(this.width, Math.max(to - from, 18 + 8 * [...w.word].length));
      const left = Math.max(0, Math.min((from + to - width) / 2, this.width - width));
      let line = free.findIndex((end) => end <= left);
      if (line < 0) line = free.push(0) - 1;
      free[line] = left + width + 3;
      const bar = el("i", {});
      Object.assign(bar.style, { left: `${from - left}px`, width: `${Math.max(3, to - from)}px` });
      const button = el("button", {
        type: "button", class: `word${w.faithful ? "" : " unproved"}`, "aria-pressed": "false", "aria-label": this.sentence(w),
        onmouseenter: () => this.show(w), onmouseleave: () => this.show(this.pinned),
        onfocus: () => this.show(w), onblur: () => this.show(this.pinned),
        onclick: () => { this.pinned = this.pinned === w ? null : w; this.show(w); this.press(); },
      }, el("bdi", {}, w.word), bar);
      Object.assign(button.style, { left: `${left}px`, width: `${width}px`, top: `${line * WORD_ROW + 2}px` });
      return button;
    });
    const height = Math.max(1, free.length) * WORD_ROW + 4;
    const box = el("div", { class: "words", role: "group", "aria-label": "Output words" }, this.buttons);
    box.style.height = `${height}px`;
    return { element: box, labels: [["output words", height]] };
  }

  /** Heat map: for each part the mean over its landmarks, or each landmark; darker is more. */
  saliency() {
    const saliency = this.e.saliency;
    if (!saliency || !saliency.times.length) return [];
    const rows = this.fine
      ? saliency.landmarks.map((_, i) => [this.landmark(i), [i]])
      : [...new Set(saliency.parts)].map((part) => [named(part), saliency.parts.flatMap((p, i) => (p === part ? [i] : []))]);
    const height = this.fine ? LANDMARK_ROW : PART_ROW;
    const values = rows.map(([, members]) =>
      saliency.values.map((step) => members.reduce((sum, i) => sum + Math.abs(step[i] || 0), 0) / members.length));
    const most = Math.max(...values.flat(), 1e-12);
    const map = el("canvas", { class: "heat", width: Math.round(this.width), height: rows.length * height, role: "img", "aria-label": this.saliencyTold() });
    const brush = map.getContext("2d");
    brush.fillStyle = "rgb(232, 93, 12)";
    const times = saliency.times;
    const border = (i) => (i <= 0 ? 0 : i >= times.length ? this.width : this.x(times[i])); // times: where spans begin
    values.forEach((line, k) => line.forEach((value, i) => {
      brush.globalAlpha = Math.max(0.03, value / most);
      brush.fillRect(border(i), k * height, border(i + 1) - border(i) + 0.4, height - 1);
    }));
    return [{ element: map, labels: rows.map(([name]) => [name, height]) }];
  }

  /** "right hand thumb 1" as "R thumb 1". */
  short(text) {
    const part = Object.keys(SHORT).find((name) => text.startsWith(`${name} `));
    return part ? `${SHORT[part]} ${text.slice(part.length + 1)}` : text;
  }

  landmark(i) {
    const { landmarks, parts } = this.e.saliency;
    return named(landmarks[i].includes(".") ? landmarks[i] : `${parts[i]}.${landmarks[i]}`);
  }

  saliencyTold() {
    const { landmarks, values } = this.e.saliency;
    const sums = landmarks.map((_, i) => [this.landmark(i), values.reduce((sum, step) => sum + Math.abs(step[i] || 0), 0)]);
    sums.sort((a, b) => b[1] - a[1]);
    return `Saliency over time; most: ${sums.slice(0, 5).map(([name]) => name).join(", ")}`;
  }

  sentence(w) {
    const loss = w.drop === null ? "" : `; hiding it costs ${shown(w.drop, 2)} nats of the word's log probability`;
    const random = w.random_drop === null ? "" : `, hiding a random stretch as long ${shown(w.random_drop, 2)}`;
    return `“${w.word}” rests on ${w.start.toFixed(2)}–${w.end.toFixed(2)} s${loss}${random}. ${w.faithful ? "✓ passes" : "✗ does not pass"} the test.`;
  }

  rest() {
    const saliency = this.e.saliency ? ` ${this.saliencyTold()}.` : "";
    const test = DATA.evidence.faithfulness;
    const failed = test && test.share < test.required ? " Beware: the stretches of this model did not pass the test as a whole." : "";
    this.told.textContent = "Point at a word, or move to it with Tab, to see the stretch of signing that it rests on. "
      + `Dashed: not proved by the test.${failed}${saliency}`;
  }

  show(w) {
    this.stretch.hidden = !w;
    if (!w) { this.rest(); return; }
    Object.assign(this.stretch.style, { left: `${this.x(w.start)}px`, width: `${Math.max(3, this.x(w.end) - this.x(w.start))}px` });
    this.told.textContent = this.sentence(w);
    if (!this.stage) return;
    const at = (w.start + w.end) / 2;
    const times = this.e.strip.times;
    this.stage.show(times.reduce((best, t, i) => (Math.abs(t - at) < Math.abs(times[best] - at) ? i : best), 0));
  }

  /** A line at the time of the large picture. */
  point(index) {
    this.cursor.style.left = `${this.x(this.e.strip.times[index])}px`;
  }

  press() {
    this.buttons.forEach((button, i) => button.setAttribute("aria-pressed", this.e.words[i] === this.pinned));
  }
}
