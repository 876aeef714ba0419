// The round as a line of phases, and its devices as dots that move from lane to lane.

import { colours } from "./canvas.js";
import { $, element, mark, part, redraw, write } from "./dom.js";
import { history, isOver, state } from "./state.js";
import { DEVICE, count, duration } from "./words.js";

const PHASES = ["selection", "configuration", "reporting", "aggregation"];
const TIMEOUTS = { selection: "selection_timeout_seconds", reporting: "reporting_timeout_seconds", aggregation: "aggregation_timeout_seconds" };
const LANES = [
  ["Selected", ["selected"]],
  ["Training", ["accepted"]],
  ["Reported", ["reported"]],
  ["Left out", ["refused", "dropped", "released"]],
];
const LANE_OF = new Map(LANES.flatMap(([, standings], lane) => standings.map((standing) => [standing, lane])));
const TONES = { selected: "edge", accepted: "accent", reported: "good", refused: "bad", dropped: "warn", released: "line" };
const MOVE_MS = 450;
const LARGEST_PITCH = 16;
const still = matchMedia("(prefers-reduced-motion: reduce)");

const dots = new Map(); // device -> { x, y, fromX, fromY, toX, toY, start, standing }
let shown = null;
let moving = false;
let box = { width: 0, height: 0, pitch: 10 };

function current() {
  const live = state.live.get(state.selected);
  if (live) return live;
  const line = [...history(state.selected).rounds.values()].reduce((a, b) => (a && a.round > b.round ? a : b), null);
  return line ? { line, at: performance.now(), parts: new Map() } : null;
}

part("round", () => {
  const task = state.tasks.get(state.selected);
  const live = task ? current() : null;
  $("round").hidden = !live;
  if (!live) return;
  write($("round-title"), `Round ${live.line.round}`);
  track(live, task);
  lanes(live.line, live.parts);
  place(live);
});

function track(live, task) {
  const { line } = live;
  const over = isOver(line);
  const passed = over ? 0 : (performance.now() - live.at) / 1000;
  note(line, task, passed);
  const stopped = line.phase === "abandoned" ? PHASES.findLast((phase) => phase in line.phase_seconds) : null;
  const steps = PHASES.map((phase) => {
    const seconds = line.phase_seconds[phase];
    if (phase === line.phase) {
      const limit = task.policy[TIMEOUTS[phase]];
      const spent = seconds + passed;
      return [phase, "now", duration(spent), limit ? Math.min(1, Math.max(0.02, spent / limit)) : 0.5];
    }
    if (phase === stopped) return [phase, "bad", duration(seconds), 1];
    return seconds == null ? [phase, "next", "–", 0] : [phase, "done", duration(seconds), 1];
  });
  const end = line.phase === "abandoned" ? "abandoned" : "committed";
  const endState = line.phase === "committed" ? "good" : line.phase === "abandoned" ? "bad" : "next";
  steps.push([end, endState, over ? duration(line.seconds) : "–", over ? 1 : 0]);
  const list = $("track");
  if (!list.children.length) list.append(...steps.map(step));
  steps.forEach(([name, condition, time, share], i) => {
    const item = list.children[i];
    mark(item, "state", condition);
    if (condition === "now") item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
    item.querySelector(".fill").style.transform = condition === "now" ? `scaleX(${share.toFixed(3)})` : "";
    write(item.querySelector(".name"), name[0].toUpperCase() + name.slice(1));
    write(item.querySelector(".time"), time);
  });
}

const step = () =>
  element(
    "li",
    {},
    element("span", { class: "rail", "aria-hidden": "true" }, element("span", { class: "fill" })),
    element("span", { class: "name" }),
    element("span", { class: "time" }),
  );

function note(line, task, passed) {
  const aside = $("round-note");
  aside.classList.toggle("reason", line.phase === "abandoned");
  if (line.phase === "abandoned") return write(aside, line.why || "Abandoned.");
  if (line.phase === "committed") return write(aside, `Version ${line.version} from version ${line.base_version}`);
  const left = line.seconds_left == null ? "" : `, at most ${duration(Math.max(0, line.seconds_left - passed))} left`;
  if (line.phase === "selection") return write(aside, `Waiting for ${count(task.policy.goal, "device")}${left}`);
  return write(aside, `From version ${line.base_version}${left}`);
}

function lanes(line, parts) {
  const list = $("lanes");
  if (!list.children.length) {
    list.append(...LANES.map(([name]) => element("div", {}, element("dt", {}, name), element("dd", {}, "0"), element("dd", { class: "why" }))));
  }
  LANES.forEach(([, standings], i) => {
    const total = standings.reduce((sum, standing) => sum + (line.standings[standing] ?? 0), 0);
    const [, figure, why] = list.children[i].children;
    write(figure, String(total));
    if (standings.length > 1) {
      const said = standings.filter((standing) => line.standings[standing]).map((standing) => `${line.standings[standing]} ${DEVICE[standing]?.[0].toLowerCase() ?? standing}`);
      write(why, total ? said.join(", ") : "");
    }
    why.hidden = !why.textContent;
  });
  if (!hovering) write($("dots-readout"), remark(line, parts));
}

// What a person should not have to look for: why the round before came to nothing, and who is left out.
function remark(line, parts) {
  const before = history(line.task).rounds.get(line.round - 1);
  if (line.phase === "selection" && before?.phase === "abandoned") return `Round ${before.round} was abandoned. ${before.why}`;
  const titles = new Map(state.events.map((event) => [event.code, event.title]));
  const left = [...parts].filter(([, entry]) => entry.code);
  const said = left.slice(0, 2).map(([device, entry]) => `${device}: ${titles.get(entry.code) ?? entry.code}`);
  if (left.length > 2) said.push(`${left.length - 2} more, see Events.`);
  return said.join(" ");
}

// --- dots

function place(live) {
  const name = `${live.line.task} ${live.line.round}`;
  if (shown !== name) dots.clear();
  shown = name;
  const canvas = $("dots");
  const width = canvas.clientWidth;
  canvas.hidden = !live.parts.size;
  if (canvas.hidden) return;
  const laneWidth = width / LANES.length;
  // as high as the whole cohort needs in one lane, so that nothing below moves while the round runs
  const rows = Math.ceil(live.parts.size / Math.max(1, Math.floor((laneWidth - 24) / LARGEST_PITCH)));
  const height = Math.min(132, Math.max(44, rows * LARGEST_PITCH + 20));
  canvas.style.height = `${height}px`;
  const members = LANES.map(() => []);
  for (const [device, entry] of live.parts) members[LANE_OF.get(entry.standing) ?? 3].push([device, entry.standing]);
  const most = Math.max(...members.map((lane) => lane.length), 1);
  const pitch = Math.max(3.5, Math.min(LARGEST_PITCH, Math.floor(2 * Math.sqrt(((laneWidth - 24) * (height - 16)) / most)) / 2));
  box = { width, height, pitch };
  const columns = Math.max(1, Math.floor((laneWidth - 24) / pitch));
  const start = performance.now();
  members.forEach((lane, laneNumber) => {
    const left = laneNumber * laneWidth + (laneNumber ? 12 : 0);
    lane.forEach(([device, standing], i) => {
      const toX = left + (i % columns) * pitch + pitch / 2;
      const toY = height - 8 - Math.floor(i / columns) * pitch - pitch / 2;
      const known = dots.get(device);
      if (!known) dots.set(device, { x: toX, y: toY, fromX: toX, fromY: toY, toX, toY, start: 0, standing });
      else if (known.toX !== toX || known.toY !== toY || known.standing !== standing) {
        Object.assign(known, { fromX: known.x, fromY: known.y, toX, toY, start: still.matches ? 0 : start, standing });
      }
    });
  });
  if (!moving) {
    moving = true;
    requestAnimationFrame(draw);
  }
}

function draw(time) {
  const canvas = $("dots");
  const scale = devicePixelRatio || 1;
  const { width, height, pitch } = box;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const palette = colours();
  const radius = Math.max(1.4, pitch * 0.34);
  const byTone = new Map();
  let busy = false;
  for (const dot of dots.values()) {
    const progress = Math.min(1, Math.max(0, (time - dot.start) / MOVE_MS));
    const eased = 1 - (1 - progress) ** 3;
    dot.x = dot.fromX + (dot.toX - dot.fromX) * eased;
    dot.y = dot.fromY + (dot.toY - dot.fromY) * eased;
    if (progress < 1) busy = true;
    const tone = TONES[dot.standing] ?? "edge";
    if (!byTone.has(tone)) byTone.set(tone, []);
    byTone.get(tone).push(dot);
  }
  for (const [tone, group] of byTone) {
    context.fillStyle = palette[tone];
    context.beginPath();
    for (const dot of group) {
      context.moveTo(dot.x + radius, dot.y);
      context.arc(dot.x, dot.y, radius, 0, 2 * Math.PI);
    }
    context.fill();
  }
  moving = busy;
  if (busy) requestAnimationFrame(draw);
}

let hovering = false;
function hover(event) {
  const { left, top } = $("dots").getBoundingClientRect();
  const x = event.clientX - left;
  const y = event.clientY - top;
  let nearest = null;
  let distance = box.pitch;
  for (const [device, dot] of dots) {
    const away = Math.hypot(dot.x - x, dot.y - y);
    if (away < distance) [nearest, distance] = [[device, dot.standing], away];
  }
  hovering = Boolean(nearest);
  if (nearest) write($("dots-readout"), `${nearest[0]} · ${(DEVICE[nearest[1]]?.[0] ?? nearest[1]).toLowerCase()}`);
  else redraw("round");
}

export function setUpRound() {
  $("dots").addEventListener("pointermove", hover);
  $("dots").addEventListener("pointerleave", () => {
    hovering = false;
    redraw("round");
  });
  new ResizeObserver(() => redraw("round")).observe($("round"));
  setInterval(() => {
    const live = state.live.get(state.selected);
    if (live && !isOver(live.line) && !document.hidden) track(live, state.tasks.get(state.selected));
  }, 500);
}
