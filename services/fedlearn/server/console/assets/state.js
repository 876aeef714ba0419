// What the page knows, and how messages of the stream change it.

import { redraw } from "./dom.js";

const OUTSTANDING = new Set(["selected", "accepted"]);
const AWAY_SECONDS = 150;

export const state = {
  release: "",
  cluster: "none",
  clockOffset: 0,
  loaded: false,
  selected: null,
  tasks: new Map(),
  live: new Map(), // task -> { line, at, parts: Map(device -> {standing, code}) }
  tiles: new Map(), // device -> tile
  inRound: new Map(), // device -> standing, of rounds that run
  events: [],
  histories: new Map(), // task -> { rounds: Map, versions: Map, loaded }
};
export const now = () => Date.now() + state.clockOffset;


// The task that the page's address names.
export const wanted = () => decodeURIComponent(location.hash.slice(1));

export function history(task) {
  if (!state.histories.has(task)) state.histories.set(task, { rounds: new Map(), versions: new Map(), loaded: false });
  return state.histories.get(task);
}

export function takeOverview(message) {
  state.clockOffset = Date.parse(message.now) - Date.now();
  state.release = message.release;
  state.cluster = message.cluster;
  state.loaded = true;
  state.tasks = new Map(message.tasks.map((task) => [task.task, task]));
  state.live.clear();
  state.inRound.clear();
  for (const task of state.histories.keys()) if (!state.tasks.has(task)) state.histories.delete(task);
  state.tiles = new Map(message.devices.map((tile) => [tile.device, tile]));
  state.events = message.events;
  takeRounds(message.rounds, message.moves);
  if (!state.tasks.has(state.selected)) choose(state.tasks.has(wanted()) ? wanted() : liveliest());
  else loadHistory(state.selected);
  redraw("tasks", "task", "round", "charts", "fleet-all", "versions", "events", "welcome", "release");
}

export function takeChanges(message) {
  state.clockOffset = Date.parse(message.now) - Date.now();
  for (const task of message.tasks) {
    const choice = !state.tasks.size || (!state.tasks.has(task.task) && task.task === wanted());
    state.tasks.set(task.task, task);
    if (choice) choose(task.task);
    redraw("tasks", "task", "welcome");
  }
  for (const tile of message.devices) changed(tile.device, tile);
  for (const device of message.gone) {
    state.tiles.delete(device);
    redraw("fleet-all", "welcome");
  }
  takeRounds(message.rounds, message.moves);
  for (const version of message.versions) {
    history(version.task).versions.set(version.model.version, version);
    if (version.task === state.selected) redraw("versions", "charts", "task");
  }
  if (message.histories.includes(state.selected)) loadHistory(state.selected);
  if (message.events.length) {
    state.events = [...message.events, ...state.events].slice(0, 500);
    redraw("events", "round");
  }
}

// Devices whose tiles are to be drawn again; a new device draws all.
export const touched = new Set();

function changed(device, tile) {
  if (!state.tiles.has(device)) redraw("fleet-all", "welcome");
  if (tile || !state.tiles.has(device)) state.tiles.set(device, tile ?? { device });
  touched.add(device);
  redraw("fleet");
}

function takeRounds(lines, moves) {
  const at = performance.now();
  for (const line of lines) {
    const known = state.live.get(line.task);
    const same = known?.line.round === line.round;
    if (known && !same) leave(known);
    const entry = { line, at, parts: same ? known.parts : new Map() };
    state.live.set(line.task, entry);
    history(line.task).rounds.set(line.round, line);
    if (isOver(line)) leave(entry);
    if (line.task === state.selected) redraw("round", "task", ...(isOver(line) ? ["charts", "versions"] : []));
  }
  for (const { task, round, anew, devices } of moves) {
    const entry = state.live.get(task);
    if (entry?.line.round !== round) continue;
    if (anew) entry.parts.clear();
    for (const [device, part] of Object.entries(devices)) {
      entry.parts.set(device, part);
      if (!isOver(entry.line)) {
        state.inRound.set(device, part.standing);
        changed(device, null);
      }
    }
  }
}

function leave(entry) {
  for (const device of entry.parts.keys()) {
    state.inRound.delete(device);
    touched.add(device);
  }
  redraw("fleet");
}

export const isOver = (line) => line.phase === "committed" || line.phase === "abandoned";

export function deviceState(tile) {
  const standing = state.inRound.get(tile.device);
  if (standing && standing !== "released") return standing;
  const pod = tile.pod?.state;
  if (pod === "terminating" || pod === "ended") return "leaving";
  if (!tile.last_seen) return pod ? "starting" : "ready";
  return OUTSTANDING.has(standing) || now() - Date.parse(tile.last_seen) < 1000 * AWAY_SECONDS ? "ready" : "away";
}

function liveliest() {
  const tasks = [...state.tasks.values()];
  const busy = tasks.filter((task) => task.state === "running" || task.state === "paused");
  return (busy.at(-1) ?? tasks.at(-1))?.task ?? null;
}

export function choose(task) {
  state.selected = task;
  if (task) loadHistory(task);
  redraw("tasks", "task", "round", "charts", "versions", "events", "welcome");
}

async function loadHistory(task) {
  try {
    const answer = await fetch(`v1/tasks/${task}/history`);
    if (!answer.ok) return;
    const found = await answer.json();
    const kept = history(task);
    const live = state.live.get(task)?.line;
    const newest = found.versions.at(-1)?.model.version ?? -1;
    const later = [...kept.versions.values()].filter((version) => version.model.version > newest);
    kept.rounds = new Map(found.rounds.map((line) => [line.round, line]));
    if (live) kept.rounds.set(live.round, live);
    kept.versions = new Map([...found.versions, ...later].map((version) => [version.model.version, version]));
    kept.loaded = true;
    if (task === state.selected) redraw("round", "charts", "versions", "task");
  } catch {
    // the stream notices as well, and everything is loaded again when it is back
  }
}
