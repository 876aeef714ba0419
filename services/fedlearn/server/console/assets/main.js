// Puts the page together.

import { forgetColours } from "./canvas.js";
import "./charts.js";
import { $, part, redraw, write } from "./dom.js";
import { setUpEvents } from "./events.js";
import { setUpFleet } from "./fleet.js";
import { setUpOperator } from "./operator.js";
import { setUpRound } from "./round.js";
import { choose, state, wanted } from "./state.js";
import { connect } from "./stream.js";
import "./task.js";
import { setUpVersions } from "./versions.js";
import "./welcome.js";

const THEMES = ["system", "light", "dark"];

part("release", () => write($("release"), `fedlearn ${state.release}`));

function setUpTheme() {
  const shown = () => document.documentElement.dataset.theme ?? "system";
  const say = () => write($("theme"), `Theme: ${shown()}`);
  const repaint = () => {
    forgetColours();
    redraw("round", "charts");
  };
  $("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(shown()) + 1) % THEMES.length];
    if (next === "system") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("theme");
    } else {
      document.documentElement.dataset.theme = next;
      localStorage.setItem("theme", next);
    }
    say();
    repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  say();
}

addEventListener("hashchange", () => {
  if (state.tasks.has(wanted())) choose(wanted());
});

setUpTheme();
setUpOperator();
setUpRound();
setUpFleet();
setUpVersions();
setUpEvents();
connect();
