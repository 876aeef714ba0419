// The tasks, the selected one's state, and what an operator may do with it.

import { act, confirmed } from "./operator.js";
import { $, element, mark, part, redraw, write } from "./dom.js";
import { history, state } from "./state.js";
import { TASK, count, number, percent, size } from "./words.js";

part("tasks", () => {
  const tabs = $("tabs");
  tabs.hidden = state.tasks.size < 2;
  const links = [...state.tasks.values()].reverse().map((task) => {
    const current = task.task === state.selected;
    return element(
      "a",
      {
        href: `#${task.task}`,
        "aria-current": current ? "page" : null,
      },
      element("span", { class: "dot", "data-tone": TASK[task.state]?.[1] ?? "" }),
      task.task,
    );
  });
  tabs.replaceChildren(...links);
});

part("task", () => {
  const task = state.tasks.get(state.selected);
  $("task").hidden = !task;
  if (!task) return;
  const [words, tone] = TASK[task.state] ?? [task.state, ""];
  write($("task-name"), task.task);
  write($("task-state"), words);
  mark($("task-state"), "tone", tone);
  document.title = `${task.task} · ${words.toLowerCase()} · fedlearn`;
  facts(task);
  actions(task);
});

function facts(task) {
  const known = history(task.task);
  const versions = [...known.versions.values()];
  const committed = versions.filter((version) => version.round != null).length;
  const best = Math.max(...versions.map((version) => version.evaluation?.accuracy ?? -1));
  const shown = [
    ["Data", task.dataset],
    ["Model", `${number(task.parameters)} parameters${task.model ? `, ${size(task.model.size_bytes)}` : ""}`],
    ["Rounds", task.rounds ? `${number(committed)} of ${number(task.rounds)}` : number(committed)],
    ["Goal", `${count(task.policy.goal, "report")} a round`],
    task.target_accuracy ? ["Target", percent(task.target_accuracy)] : null,
    best >= 0 ? ["Best accuracy", percent(best)] : null,
  ].filter(Boolean);
  const list = $("task-facts");
  const key = JSON.stringify(shown);
  if (list.dataset.shown === key) return;
  list.dataset.shown = key;
  list.replaceChildren(
    ...shown.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function actions(task) {
  const bar = $("task-actions");
  if (bar.dataset.of === `${task.task} ${task.state}`) return;
  bar.dataset.of = `${task.task} ${task.state}`;
  const buttons = [];
  if (task.state === "running") buttons.push(action("Pause", () => order(task.task, "pause")));
  if (task.state === "paused") buttons.push(action("Resume", () => order(task.task, "resume"), "strong"));
  if (["waiting_for_model", "running", "paused"].includes(task.state)) {
    buttons.push(action("Cancel", () => cancel(task.task), "danger"));
  }
  bar.replaceChildren(...buttons);
}

const action = (words, does, look = "") => element("button", { type: "button", class: look, onclick: does }, words);

async function order(task, word) {
  const answer = await act("POST", `v1/tasks/${task}/${word}`);
  if (!answer) return;
  state.tasks.set(task, { ...state.tasks.get(task), ...(await answer.json()) });
  redraw("tasks", "task");
}

async function cancel(task) {
  const sure = await confirmed(`Cancel ${task}?`, "Its running round is abandoned. Versions stay; the task can't be resumed.", "Cancel the task");
  if (sure) await order(task, "cancel");
}
