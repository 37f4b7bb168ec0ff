// Draws curves over rounds as SVG, with a readout under the pointer or the arrow keys.

const MARGIN = { left: 52, right: 12, top: 10, bottom: 34 };

// Round numbers between two ends: steps of 1, 2, 2.5 or 5 times a power of ten.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((one) => one * power >= rough * 0.8);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
    found.push(Number((i * step).toPrecision(10)));
  }
  return found;
}

function logTicks(low, high) {
  const found = [], steps = high / low < 1e3 ? [1, 2, 5] : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const step of steps) {
      const value = Number((step * 10 ** power).toPrecision(6));
      if (value >= low * 0.999 && value <= high * 1.001) { found.push(value); }
    }
  }
  return found;
}

// Lines are {title, color, dash, width, rounds, mean, ci}; null in `mean` leaves a gap.
class Plot {
  constructor(root) {
    this.root = root;
    this.lines = [];
    this.hidden = new Set();
    this.round = null;
    this.svg = make("svg", { class: "plot", tabindex: 0, role: "img" });
    this.readout = make("div", { class: "readout", role: "status", hidden: "" });
    this.legend = make("div", { class: "legend" });
    this.frame = make("div", { class: "frame" }, this.svg, this.readout);
    root.replaceChildren(this.frame, this.legend);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.read(null));
    this.svg.addEventListener("blur", () => this.read(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(root);
  }

  // `label` names the y axis; `mark` is a round to mark, such as the slider's.
  show(lines, label, log, mark) {
    Object.assign(this, { lines, label, log, mark });
    const names = lines.map((line) => line.title).join("\n");
    if (names !== this.names) { this.fillLegend(); }
    this.names = names;
    this.draw();
  }

  fillLegend() {
    this.legend.replaceChildren(...this.lines.map(({ title, color, dash }) => {
      const sample = make("svg", { width: 26, height: 10, "aria-hidden": "true" }, make("line", {
        x1: 1, x2: 25, y1: 5, y2: 5, stroke: onPage(color), "stroke-width": 2.5, "stroke-dasharray": dash,
      }));
      const pressed = String(!this.hidden.has(title));
      const button = make("button", { type: "button", "aria-pressed": pressed }, sample, title);
      button.addEventListener("click", () => {
        this.hidden[this.hidden.has(title) ? "delete" : "add"](title);
        button.setAttribute("aria-pressed", String(!this.hidden.has(title)));
        this.draw();
      });
      return button;
    }));
  }

  shown() { return this.lines.filter((line) => !this.hidden.has(line.title)); }

  limits() {
    const usable = (value) => value !== null && (!this.log || value > 0);
    const shown = this.shown(), means = shown.flatMap((line) => line.mean.filter(usable));
    const rounds = shown.flatMap((line) => line.rounds);
    if (!means.length) { return null; }
    const bend = this.log ? Math.log10 : (value) => value;
    const all = means.map(bend);
    let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    const pad = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    // An interval widens the axis by half of what the means span at most.
    let [floor, ceiling] = [low, high];
    for (const line of shown) {
      line.mean.forEach((value, i) => {
        if (!usable(value) || !line.ci || line.ci[i] === null) { return; }
        if (!this.log || value > line.ci[i]) { floor = Math.min(floor, bend(value - line.ci[i])); }
        ceiling = Math.max(ceiling, bend(value + line.ci[i]));
      });
    }
    const half = (high - low) / 2;
    const isPositive = !this.log && low >= 0; // an axis of what is never negative does not go below 0
    low = Math.max(floor, low - half) - pad;
    if (isPositive) { low = Math.max(0, low); }
    high = Math.min(ceiling, high + half) + pad;
    const first = Math.min(...rounds), last = Math.max(...rounds);
    return { low, high, bend, first, last: last > first ? last : first + 1 };
  }

  draw() {
    const width = Math.round(this.root.clientWidth), height = Math.round(Math.min(340, 140 + width * 0.35));
    if (!width) { return; } // in a section that is folded
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    this.limit = this.limits();
    if (!this.limit) {
      this.svg.setAttribute("aria-label", `${this.label}: no values yet`);
      const place = { x: width / 2, y: height / 2, "text-anchor": "middle" };
      this.svg.append(make("text", place, "no values yet"));
      return;
    }
    const { low, high, bend, first, last } = this.limit;
    const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
    this.x = (round) => MARGIN.left + (round - first) / (last - first) * (right - MARGIN.left);
    this.y = (value) => bottom - (bend(value) - low) / (high - low) * (bottom - MARGIN.top);
    this.drawAxes(right, bottom);
    const inside = (y) => Math.max(MARGIN.top - 2, Math.min(bottom + 2, y));
    for (const line of this.shown()) { this.drawLine(line, inside); }
    this.cursor = make("g", { class: "cursor" });
    if (this.mark !== undefined && this.mark >= first && this.mark <= last) {
      const x = this.x(this.mark);
      this.svg.append(make("line", { class: "mark", x1: x, x2: x, y1: MARGIN.top, y2: bottom }));
    }
    this.svg.append(this.cursor);
    this.svg.setAttribute("aria-label", this.summary());
    this.read(this.round);
  }

  drawAxes(right, bottom) {
    const { low, high, first, last } = this.limit;
    const values = this.log ? logTicks(10 ** low, 10 ** high) : ticks(low, high, 5);
    for (const value of values) {
      const y = this.y(value);
      this.svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }));
      const text = make("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, short(value));
      this.svg.append(text);
    }
    for (const round of ticks(first, last, Math.min(6, right / 90)).filter(Number.isInteger)) {
      const place = { x: this.x(round), y: bottom + 16, "text-anchor": "middle" };
      this.svg.append(make("text", place, round >= 10000 ? `${round / 1000}k` : String(round)));
    }
    const middle = (MARGIN.left + right) / 2;
    this.svg.append(make("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
    this.svg.append(make("text", { x: middle, y: bottom + 31, "text-anchor": "middle" }, "round"));
  }

  drawLine(line, inside) {
    const usable = (value) => value !== null && (!this.log || value > 0);
    const color = onPage(line.color), points = [], upper = [], lower = [];
    let path = "", gap = true;
    line.rounds.forEach((round, i) => {
      if (!usable(line.mean[i])) { gap = true; return; }
      const x = this.x(round).toFixed(1), y = this.y(line.mean[i]);
      path += `${gap ? "M" : "L"}${x} ${inside(y).toFixed(1)}`;
      gap = false;
      points.push([x, inside(y).toFixed(1)]);
      const half = line.ci && line.ci[i];
      if (half !== null && half !== undefined) {
        const least = line.mean[i] - half;
        upper.push(`${x} ${inside(this.y(line.mean[i] + half)).toFixed(1)}`);
        lower.unshift(`${x} ${inside(usable(least) ? this.y(least) : Infinity).toFixed(1)}`);
      }
    });
    if (upper.length > 1) {
      const d = `M${[...upper, ...lower].join("L")}Z`;
      this.svg.append(make("path", { d, fill: color, "fill-opacity": 0.16 }));
    }
    this.svg.append(make("path", {
      d: path, fill: "none", stroke: color, "stroke-width": line.width,
      "stroke-dasharray": line.dash || "", "stroke-linejoin": "round",
    }));
    if (points.length <= 30) {
      for (const [x, y] of points) {
        this.svg.append(make("circle", { cx: x, cy: y, r: 1 + line.width * 0.7, fill: color }));
      }
    }
  }

  // The value of a line at its point nearest to a round.
  nearest(line, round) {
    let found = null;
    line.rounds.forEach((one, i) => {
      if (line.mean[i] === null) { return; }
      if (found === null || Math.abs(one - round) < Math.abs(line.rounds[found] - round)) { found = i; }
    });
    return found;
  }

  // Shows the values at a round; null hides them.
  read(round) {
    this.round = round;
    this.readout.hidden = round === null || !this.limit;
    if (!this.cursor) { return; }
    this.cursor.replaceChildren();
    if (this.readout.hidden) { return; }
    const x = this.x(round), bottom = this.svg.viewBox.baseVal.height - MARGIN.bottom;
    this.cursor.append(make("line", { x1: x, x2: x, y1: MARGIN.top, y2: bottom }));
    const found = [];
    for (const line of this.shown()) {
      const i = this.nearest(line, round);
      if (i === null) { continue; }
      const value = line.mean[i], half = line.ci ? line.ci[i] : null;
      const at = line.rounds[i] === round ? "" : ` (round ${line.rounds[i]})`;
      const words = `${line.title} ${short(value)}${half === null ? "" : ` ± ${short(half)}`}${at}`;
      found.push([value, words, line]);
      if (!this.log || value > 0) {
        const place = { cx: this.x(line.rounds[i]), cy: this.y(value), r: 4, fill: onPage(line.color) };
        this.cursor.append(make("circle", place));
      }
    }
    found.sort((a, b) => b[0] - a[0]);
    const rows = found.slice(0, 12).map(([, text, line]) => {
      const row = make("div", {}, make("i"), text);
      row.firstChild.style.background = onPage(line.color);
      return row;
    });
    this.readout.replaceChildren(make("b", {}, `round ${round}`), ...rows);
    const leftHalf = x < this.root.clientWidth / 2;
    this.readout.style.left = leftHalf ? `${x + 10}px` : "";
    this.readout.style.right = leftHalf ? "" : `${this.root.clientWidth - x + 10}px`;
  }

  allRounds() { return [...new Set(this.shown().flatMap((line) => line.rounds))].sort((a, b) => a - b); }

  point(event) {
    if (!this.limit) { return; }
    const box = this.svg.getBoundingClientRect(), x = event.clientX - box.left;
    const near = (round) => Math.abs(this.x(round) - x);
    this.read(this.allRounds().reduce((best, one) => (near(one) < near(best) ? one : best)));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") { this.read(null); }
    if (!step || !this.limit) { return; }
    const rounds = this.allRounds(), now = rounds.indexOf(this.round);
    const from = now >= 0 ? now : rounds.length - 1 - step;
    this.read(rounds[Math.max(0, Math.min(rounds.length - 1, from + step))]);
    event.preventDefault();
  }

  summary() {
    const parts = this.shown().map((line) => {
      const known = line.mean.filter((value) => value !== null);
      return known.length ? `${line.title} ends at ${short(known.at(-1))}` : `${line.title} has no values`;
    });
    return `${this.label} over rounds: ${parts.join("; ")}. Arrow keys read values.`;
  }
}
