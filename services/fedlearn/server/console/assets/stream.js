// The stream of changes: it comes back by itself, and goes on where it was if the server still knows.

import { $, mark, write } from "./dom.js";
import { takeChanges, takeOverview } from "./state.js";

const SILENCE_MS = 40_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8_000;

let source = null;
let last = "";
let pause = FIRST_PAUSE_MS;
let watchdog = 0;

export function connect() {
  source?.close();
  source = new EventSource(`v1/stream${last ? `?after=${encodeURIComponent(last)}` : ""}`);
  source.addEventListener("overview", (event) => heard(event, takeOverview));
  source.addEventListener("changes", (event) => heard(event, takeChanges));
  source.addEventListener("beat", (event) => heard(event, null));
  source.addEventListener("error", lost);
  watch();
}

function heard(event, take) {
  if (event.lastEventId) last = event.lastEventId;
  pause = FIRST_PAUSE_MS;
  show("live", "Live");
  watch();
  if (take) take(JSON.parse(event.data));
}

function lost() {
  source.close();
  clearTimeout(watchdog);
  show("lost", "Server not reachable, trying again");
  setTimeout(connect, pause * (0.75 + Math.random() / 2));
  pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
}

function watch() {
  clearTimeout(watchdog);
  watchdog = setTimeout(lost, SILENCE_MS);
}

function show(condition, text) {
  mark($("link"), "state", condition);
  write($("link"), text);
}
