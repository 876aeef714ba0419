// A tile for each device. Only tiles that have changed are written; those out of sight are not laid out.

import { $, element, mark, part, redraw, write } from "./dom.js";
import { deviceState, now, state, touched } from "./state.js";
import { DEVICE, ago, count, number } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const FILTERS = [
  ["all", "All", () => true],
  ["busy", "In a round", (kind) => kind === "selected" || kind === "accepted" || kind === "reported"],
  ["ready", "Ready", (kind) => kind === "ready"],
  ["trouble", "Refused or dropped out", (kind) => kind === "refused" || kind === "dropped"],
  ["gone", "Away", (kind) => kind === "away" || kind === "leaving" || kind === "starting"],
];
const nodes = new Map(); // device -> { node, parts..., kind }
const labels = new Set();
let filter = "all";
let wanted = "";

part("fleet-all", () => {
  $("fleet").hidden = !state.tiles.size;
  for (const [device, entry] of nodes) {
    if (!state.tiles.has(device)) {
      entry.node.remove();
      nodes.delete(device);
    }
  }
  const names = [...state.tiles.keys()].sort(new Intl.Collator("en", { numeric: true }).compare);
  for (const device of names) {
    if (!nodes.has(device)) nodes.set(device, make(device));
    touched.add(device);
  }
  $("tiles").replaceChildren(...names.map((device) => nodes.get(device).node));
  draw();
});

part("fleet", draw);

function make(device) {
  const entry = {
    dot: element("span", { class: "dot", "aria-hidden": "true" }),
    state: element("p", { class: "state" }),
    data: element("p"),
    seen: element("p"),
    kind: "",
  };
  entry.node = element("li", { class: "tile" }, element("b", { title: device }, entry.dot, element("span", {}, element("bdi", {}, device))), entry.state, entry.data, entry.seen);
  return entry;
}

function draw() {
  const asked = new Set(touched);
  touched.clear();
  // every tile has a place for every label of the fleet, so that tiles can be compared
  const known = labels.size;
  for (const device of asked) for (const label of Object.keys(state.tiles.get(device)?.labels ?? {})) labels.add(label);
  if (labels.size !== known) for (const device of nodes.keys()) asked.add(device);
  for (const device of asked) {
    const tile = state.tiles.get(device);
    const entry = nodes.get(device);
    if (tile && entry) fill(entry, tile);
  }
  $("tiles").toggleAttribute("data-labels", [...nodes.values()].some(({ bars }) => bars));
  chips();
  screen();
}

function fill(entry, tile) {
  entry.kind = deviceState(tile);
  const [words, tone] = DEVICE[entry.kind] ?? [entry.kind, ""];
  mark(entry.node, "tone", tone);
  mark(entry.dot, "tone", tone);
  write(entry.state, words);
  write(entry.data, tile.examples ? `${count(tile.examples, "example")} of ${tile.dataset}` : "Has not checked in");
  seen(entry, tile);
  bars(entry, tile);
}

function seen(entry, tile) {
  const node = tile.pod?.node ? `${tile.pod.node} · ` : "";
  const time = tile.last_seen ? `Seen ${ago((now() - Date.parse(tile.last_seen)) / 1000)}` : "Not seen";
  write(entry.seen, node ? `${node}${time.toLowerCase()}` : time);
}

// How many examples of each label, where the operator shows it.
function bars(entry, tile) {
  const key = tile.labels ? `${labels.size} ${JSON.stringify(tile.labels)}` : "";
  if ((entry.labels ?? "") === key) return;
  entry.labels = key;
  entry.bars?.remove();
  if (!key) return;
  const places = [...labels].sort(new Intl.Collator("en", { numeric: true }).compare).map((label) => [label, tile.labels[label] ?? 0]);
  const most = Math.max(...places.map(([, n]) => n), 1);
  entry.bars = document.createElementNS(SVG, "svg");
  entry.bars.setAttribute("viewBox", `0 0 ${10 * places.length} 16`);
  entry.bars.setAttribute("preserveAspectRatio", "none");
  entry.bars.setAttribute("role", "img");
  entry.bars.setAttribute("aria-label", `Examples a label: ${places.map(([label, n]) => `${label}: ${n}`).join(", ")}`);
  places.forEach(([, n], i) => {
    const bar = document.createElementNS(SVG, "rect");
    const height = n ? Math.max(1, (15 * n) / most) : 0;
    for (const [name, value] of Object.entries({ x: 10 * i + 1, y: 16 - height, width: 8, height })) bar.setAttribute(name, value);
    entry.bars.append(bar);
  });
  entry.node.append(entry.bars);
}

function chips() {
  const bar = $("fleet-chips");
  if (!bar.children.length) {
    for (const [name] of FILTERS) {
      const choose = () => {
        filter = name;
        redraw("fleet");
      };
      bar.append(element("button", { type: "button", onclick: choose }));
    }
  }
  const counts = FILTERS.map(() => 0);
  for (const { kind } of nodes.values()) FILTERS.forEach(([, , fits], i) => (counts[i] += fits(kind) ? 1 : 0));
  FILTERS.forEach(([name, words], i) => {
    const chip = bar.children[i];
    chip.setAttribute("aria-pressed", String(filter === name));
    chip.hidden = !counts[i] && name !== "all" && filter !== name;
    write(chip, `${words} ${number(counts[i])}`);
  });
}

function screen() {
  const fits = FILTERS.find(([name]) => name === filter)[2];
  for (const [device, { node, kind }] of nodes) {
    const hidden = !fits(kind) || !device.includes(wanted);
    if (node.hidden !== hidden) node.hidden = hidden;
  }
}

export function setUpFleet() {
  $("fleet-search").addEventListener("input", (event) => {
    wanted = event.target.value.trim();
    redraw("fleet");
  });
  setInterval(() => {
    if (document.hidden) return;
    for (const [device, entry] of nodes) {
      const tile = state.tiles.get(device);
      if (!tile) continue;
      seen(entry, tile);
      if (deviceState(tile) !== entry.kind) touched.add(device);
    }
    if (touched.size) redraw("fleet");
  }, 10_000);
}
