// A line chart on a canvas, with a cursor for pointer and keyboard. A thousand points are one path.

import { colours } from "./canvas.js";
import { element } from "./dom.js";

const TOP = 10;
const BOTTOM = 24;
const RIGHT = 10;

export class Chart {
  // name: what is drawn; say: value -> words; series: [[key, words], ...]
  constructor(place, name, say, series, bounds) {
    Object.assign(this, { name, say, series, bounds, points: new Map(), lost: [], cursor: null, last: 0 });
    this.canvas = element("canvas", { tabindex: "0", role: "slider", "aria-label": `${name} by round` });
    const keys = series.map(([key, words]) => element("span", { "data-series": key }, element("i"), words));
    place.append(this.canvas, element("div", { class: "key" }, ...keys, element("span", { "data-series": "lost" }, element("i"), "Abandoned")));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.move(null));
    this.canvas.addEventListener("blur", () => this.move(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  // points: key -> [[round, value], ...] in order of round; lost: rounds that were abandoned
  show(points, lost) {
    this.points = points;
    this.lost = lost;
    const rounds = [...points.values()].flatMap((line) => line.map(([x]) => x));
    this.last = Math.max(1, ...lost, ...rounds);
    this.rounds = [...new Set(rounds)].sort((a, b) => a - b);
    const values = [...points.values()].flatMap((line) => line.map(([, y]) => y)).filter(Number.isFinite);
    this.scale = axis(values, this.bounds);
    this.describe();
    this.draw();
  }

  describe() {
    const canvas = this.canvas;
    const at = this.cursor ?? this.rounds.at(-1) ?? 0;
    canvas.setAttribute("aria-valuemin", "0");
    canvas.setAttribute("aria-valuemax", String(this.last));
    canvas.setAttribute("aria-valuenow", String(at));
    canvas.setAttribute("aria-valuetext", this.rounds.length ? this.words(at) : "Nothing measured yet");
  }

  words(round) {
    const said = this.series.map(([key, words]) => [words, this.points.get(key)?.find(([x]) => x === round)?.[1]]);
    const found = said.filter(([, value]) => value !== undefined).map(([words, value]) => `${words.toLowerCase()} ${this.say(value)}`);
    return `Round ${round}: ${found.join(", ")}`;
  }

  key(event) {
    const at = this.rounds.indexOf(this.cursor ?? this.rounds.at(-1));
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.rounds.length - 1 }[event.key];
    if (to === undefined || !this.rounds.length) return;
    event.preventDefault();
    this.move(this.rounds[Math.max(0, Math.min(this.rounds.length - 1, to))]);
  }

  point(event) {
    if (!this.rounds?.length) return;
    const x = event.clientX - this.canvas.getBoundingClientRect().left;
    const round = ((x - this.left) / (this.width - this.left - RIGHT)) * this.last;
    this.move(this.rounds.reduce((a, b) => (Math.abs(b - round) < Math.abs(a - round) ? b : a)));
  }

  move(round) {
    if (round === this.cursor) return;
    this.cursor = round;
    this.describe();
    this.onmove?.(round === null ? null : this.words(round));
    this.draw();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.paint();
    });
  }

  paint() {
    const { canvas, scale } = this;
    const width = (this.width = canvas.clientWidth);
    const height = canvas.clientHeight;
    if (!width || !scale) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const palette = colours();
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const labels = scale.ticks.map((tick) => this.bounds.say(tick, scale.step));
    this.left = Math.ceil(Math.max(...labels.map((label) => context.measureText(label).width))) + 10;
    const x = (round) => this.left + (round / this.last) * (width - this.left - RIGHT);
    const y = (value) => TOP + (1 - (value - scale.low) / (scale.high - scale.low)) * (height - TOP - BOTTOM);

    context.textBaseline = "middle";
    context.textAlign = "right";
    context.lineWidth = 1;
    scale.ticks.forEach((tick, i) => {
      const at = Math.round(y(tick)) + 0.5;
      context.strokeStyle = palette.line;
      line(context, [[this.left, at], [width - RIGHT, at]]);
      context.fillStyle = palette.muted;
      context.fillText(labels[i], this.left - 8, at);
    });
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    for (const round of steps(this.last, width)) context.fillText(String(round), Math.min(x(round), width - RIGHT - 6), height - 6);
    context.fillStyle = palette.bad;
    for (const round of this.lost) context.fillRect(x(round) - 1, height - BOTTOM - 7, 2, 7);

    const looks = { test: [palette.accent, 2, []], held: [palette.edge, 1.5, [4, 3]] };
    for (const [key] of [...this.series].reverse()) {
      const points = (this.points.get(key) ?? []).filter(([, value]) => Number.isFinite(value)).map(([round, value]) => [x(round), y(value)]);
      const [colour, thick, dash] = looks[key];
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = thick;
      context.lineJoin = "round";
      context.setLineDash(dash);
      line(context, points);
      context.setLineDash([]);
      if (points.length <= 40) for (const [px, py] of points) disc(context, px, py, key === "test" ? 2.5 : 1.8);
      if (this.cursor !== null) {
        const at = this.points.get(key)?.find(([round]) => round === this.cursor);
        if (at) disc(context, x(at[0]), y(at[1]), 4);
      }
    }
    if (this.cursor !== null) {
      context.strokeStyle = palette.edge;
      context.lineWidth = 1;
      line(context, [[x(this.cursor), TOP], [x(this.cursor), height - BOTTOM]]);
    }
    if (!this.rounds.length) {
      context.fillStyle = palette.muted;
      context.font = `13px ${getComputedStyle(document.body).fontFamily}`;
      context.fillText("Nothing measured yet", (this.left + width) / 2, height / 2 - 4);
    }
  }
}

function line(context, points) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

function disc(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

// Round numbers around the values: at most five lines.
export function axis(values, { floor = -Infinity, ceiling = Infinity, empty }) {
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : empty;
  if (high - low < 1e-9) [low, high] = [low - 0.05 * Math.abs(low || 1), high + 0.05 * Math.abs(high || 1)];
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  low = Math.max(floor, Math.floor(low / step + 1e-9) * step);
  high = Math.min(ceiling, Math.ceil(high / step - 1e-9) * step);
  const ticks = [];
  for (let tick = low; tick <= high + step / 1e6; tick += step) ticks.push(tick);
  return { low, high, ticks, step };
}

function steps(last, width) {
  const rough = last / Math.max(2, Math.floor(width / 90));
  const power = 10 ** Math.max(0, Math.floor(Math.log10(rough)));
  const step = Math.max(1, [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough));
  const found = [];
  for (let round = 0; round <= last; round += step) found.push(round);
  return found;
}
