// The versions of the task's model, newest first, each with the version that it came from.

import { act } from "./operator.js";
import { $, element, part, redraw } from "./dom.js";
import { history, state } from "./state.js";
import { percent, size } from "./words.js";

const FEW = 8;
let all = false;

part("versions", () => {
  const kept = state.selected ? history(state.selected) : null;
  const versions = kept ? [...kept.versions.values()].sort((a, b) => b.model.version - a.model.version) : [];
  $("records").hidden = !kept?.loaded;
  if (!kept?.loaded) return;
  const task = state.tasks.get(state.selected);
  const best = Math.max(...versions.map((version) => version.evaluation?.accuracy ?? -1));
  const shown = all ? versions : versions.slice(0, FEW);
  const rows = shown.map((version) => row(version, kept, task.model?.version, best));
  $("lineage").replaceChildren(...(rows.length ? rows : [element("li", { class: "nothing" }, "No version yet.")]));
  $("versions-more").hidden = versions.length <= FEW;
  $("versions-more").textContent = all ? "Show fewer" : `Show all ${versions.length}`;
});

function row(version, kept, current, best) {
  const { model, round, evaluation } = version;
  const parent = version.parent ?? kept.rounds.get(round)?.base_version;
  const accuracy = evaluation?.accuracy;
  return element(
    "li",
    { "data-current": model.version === current },
    element("span", { class: "node", "aria-hidden": "true" }),
    element(
      "div",
      {},
      element(
        "div",
        { class: "line" },
        element("b", {}, `v${model.version}`),
        accuracy === undefined ? null : element("span", {}, percent(accuracy)),
        ...(version.labels ?? []).map((label) => element("span", { class: "badge" }, label)),
        model.version === current ? element("span", { class: "badge", "data-tone": "live" }, "Current") : null,
        accuracy !== undefined && accuracy === best ? element("span", { class: "badge", "data-tone": "good" }, "Best") : null,
      ),
      element("div", { class: "sub" }, `${origin(round, parent)} · ${size(model.size_bytes)} · `, element("span", { class: "mono", title: model.sha256 }, model.sha256.slice(0, 10))),
    ),
    element("button", { type: "button", class: "quiet", "aria-label": `Download version ${model.version}`, onclick: () => download(version) }, "Download"),
  );
}

function origin(round, parent) {
  if (round == null) return parent == null ? "Initial model" : `Restored from v${parent}`;
  return parent == null ? `Round ${round}` : `Round ${round}, from v${parent}`;
}

async function download({ task, model }) {
  const answer = await act("GET", `v1/tasks/${task}/models/${model.version}/file`);
  if (!answer) return;
  const link = element("a", { href: URL.createObjectURL(await answer.blob()), download: `${task}-${model.version}.safetensors` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export function setUpVersions() {
  $("versions-more").addEventListener("click", () => {
    all = !all;
    redraw("versions");
  });
}
