// The event log: how rounds ended, whose updates were refused or never came, and why.

import { $, element, part, redraw } from "./dom.js";
import { state } from "./state.js";
import { count, moment } from "./words.js";

const KINDS = {
  round_committed: ["good", (event) => `Round ${event.round} committed`],
  round_abandoned: ["bad", (event) => `Round ${event.round} abandoned`],
  update_refused: ["bad", (event) => `${count(event.count, "update")} refused in round ${event.round}`],
  device_dropped: ["warn", (event) => `${count(event.count, "device")} dropped out of round ${event.round}`],
  task_changed: ["live", (event) => event.detail.replace(/\.$/, "")],
};
const TROUBLE = new Set(["round_abandoned", "update_refused", "device_dropped"]);
const rows = new WeakMap();
let only = "all";

part("events", () => {
  const events = state.events.filter((event) => event.task === state.selected && (only === "all" || TROUBLE.has(event.kind)));
  const nodes = events.map((event) => {
    if (!rows.has(event)) rows.set(event, row(event));
    return rows.get(event);
  });
  const none = element("li", { class: "nothing" }, only === "all" ? "Nothing has happened yet." : "No refusal, drop-out or abandoned round.");
  $("log").replaceChildren(...(nodes.length ? nodes : [none]));
  for (const chip of $("events-chips").children) chip.setAttribute("aria-pressed", String(chip.dataset.name === only));
});

function row(event) {
  const [tone, words] = KINDS[event.kind] ?? ["", () => event.kind];
  const what = element("div", { class: "what" }, words(event));
  const details = [];
  if (event.devices.length) {
    const others = event.count - event.devices.length;
    details.push(event.devices.slice(0, 5).join(", ") + (event.devices.length > 5 || others ? ` and ${event.count - Math.min(5, event.devices.length)} more` : ""));
  }
  if (event.detail && event.kind !== "task_changed") details.push(event.detail);
  return element(
    "li",
    {},
    element("span", { class: "dot", "data-tone": tone, "aria-hidden": "true" }),
    what,
    element("time", { datetime: event.at }, moment(new Date(event.at))),
    event.title ? element("p", { class: "why" }, `${event.title} `, element("code", {}, event.code)) : null,
    details.length ? element("p", { class: "detail" }, details.join(" · ")) : null,
  );
}

async function older() {
  const last = state.events.findLast((event) => event.number !== undefined)?.number;
  const answer = await fetch(`v1/events?limit=200${last === undefined ? "" : `&before=${last}`}`);
  if (!answer.ok) return;
  const found = await answer.json();
  state.events.push(...found.filter((event) => last !== undefined || !state.events.length));
  $("events-more").disabled = !found.length;
  redraw("events");
}

export function setUpEvents() {
  for (const [name, words] of [["all", "All"], ["trouble", "Problems"]]) {
    const choose = () => {
      only = name;
      redraw("events");
    };
    $("events-chips").append(element("button", { type: "button", "data-name": name, onclick: choose }, words));
  }
  $("events-more").addEventListener("click", older);
}
