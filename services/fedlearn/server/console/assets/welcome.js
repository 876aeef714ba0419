// What a visitor of an empty system does next.

import { hint } from "./operator.js";
import { $, command, element, part } from "./dom.js";
import { state } from "./state.js";
import { count } from "./words.js";

part("welcome", () => {
  const empty = state.loaded && !state.tasks.size;
  const box = $("welcome");
  box.hidden = !empty;
  if (!empty) return;
  document.title = "fedlearn";
  const devices = state.tiles.size;
  const key = `${devices} ${state.cluster}`;
  if (box.dataset.shown === key) return;
  box.dataset.shown = key;
  const cluster = state.cluster !== "none";
  $("welcome-lead").textContent = devices
    ? `${count(devices, "device")} ${devices === 1 ? "is" : "are"} here and ${devices === 1 ? "waits" : "wait"} for a task.`
    : "The server runs. It needs devices and a task; this page follows by itself.";
  $("steps").replaceChildren(
    stepOf(1, true, "The server runs", "You are looking at it."),
    stepOf(2, devices > 0, devices ? `${count(devices, "device")} checked in` : "Let devices check in", ...deviceHelp(cluster, devices)),
    stepOf(3, false, "Submit a task", "Its first version is made on your machine and uploaded; rounds begin as soon as enough devices wait.", ...taskHelp()),
  );
});

function deviceHelp(cluster, devices) {
  if (devices) return ["More may come and go at any time."];
  if (cluster) return ["Each pod of the StatefulSet is a device with its own shard.", command("kubectl scale statefulset/fedlearn-device --replicas=5")];
  return [
    "On one machine, one command starts a server of its own with devices and a task, and says where to look:",
    command("fedlearn up --devices 5"),
  ];
}

function taskHelp() {
  const token = hint().replace("<the run's directory>", "RUN_DIRECTORY");
  return [command(`export FEDLEARN_OPERATOR_TOKEN=$(${token})\nfedlearn tasks submit-builtin --task mnist-2nn --devices 3 \\\n  --server ${location.origin}`)];
}

function stepOf(number, done, title, ...body) {
  return element(
    "li",
    { "data-done": done },
    element("span", { class: "mark", "aria-hidden": "true" }, done ? "✓" : String(number)),
    element("h2", {}, title, done ? element("span", { class: "unseen" }, " (done)") : null),
    element("div", { class: "body" }, ...body.map((entry) => (typeof entry === "string" ? element("p", {}, entry) : entry))),
  );
}
