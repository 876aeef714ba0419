// Accuracy and loss over rounds: on the test set where an evaluator scores versions, and on the devices' hold-outs.

import { Chart } from "./chart.js";
import { $, part, write } from "./dom.js";
import { history, state } from "./state.js";
import { percent } from "./words.js";

const decimals = (step) => Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
const SHARES = { floor: 0, ceiling: 1, empty: [0, 1], say: (tick, step) => `${(100 * tick).toFixed(decimals(100 * step))} %` };
const LOSSES = { floor: 0, empty: [0, 1], say: (tick, step) => tick.toFixed(decimals(step)) };
const loss = (value) => (Math.abs(value) < 10 ? value.toFixed(3) : value.toPrecision(3));
const SERIES = [["test", "Test set"], ["held", "Devices' hold-outs"]];
let charts = null;

part("charts", () => {
  const kept = state.selected ? history(state.selected) : null;
  $("charts").hidden = !kept?.loaded;
  if (!kept?.loaded) return;
  charts ??= [
    ["accuracy", make("accuracy", "Accuracy", percent, SHARES)],
    ["loss", make("loss", "Loss", loss, LOSSES)],
  ];
  const rounds = [...kept.rounds.values()].sort((a, b) => a.round - b.round);
  const versions = [...kept.versions.values()].sort((a, b) => a.model.version - b.model.version);
  const roundOf = new Map(versions.map((version) => [version.model.version, version.round ?? 0]));
  const lost = rounds.filter((line) => line.phase === "abandoned").map((line) => line.round);
  for (const [metric, chart] of charts) {
    // a round's hold-out figures are of the version that it started from
    const held = rounds
      .filter((line) => line.metrics?.[metric] !== undefined && roundOf.has(line.base_version))
      .map((line) => [roundOf.get(line.base_version), line.metrics[metric]]);
    const test = versions
      .filter((version) => version.evaluation?.[metric] !== undefined)
      .map((version) => [version.round ?? 0, version.evaluation[metric]]);
    chart.show(new Map([["test", test], ["held", held]]), lost);
    chart.latest = (test.at(-1) ?? held.at(-1))?.[1];
    if (chart.cursor === null) rest(chart, metric);
  }
});

function make(metric, name, say, bounds) {
  const chart = new Chart($(metric), name, say, SERIES, bounds);
  chart.onmove = (words) => (words === null ? rest(chart, metric) : write($(`${metric}-note`), words));
  return chart;
}

function rest(chart, metric) {
  write($(`${metric}-note`), chart.latest === undefined ? "" : `Latest ${chart.say(chart.latest)}`);
}
