// The operators' token: asked for when it is needed, kept for this tab, sent with what changes something.

import { $, element, part, redraw, toast, write } from "./dom.js";
import { state } from "./state.js";
import { moment } from "./words.js";

const KEY = "fedlearn-operator-token";
const token = () => sessionStorage.getItem(KEY);

export function hint() {
  return state.cluster === "none"
    ? "cat <the run's directory>/keys/operator.token"
    : "kubectl get secret fedlearn-operator -o jsonpath='{.data.token}' | base64 -d";
}

// Resolves with a token that the server takes, or null if the dialog was closed.
function signIn() {
  const dialog = $("sign-in");
  write($("sign-in-hint"), hint());
  $("sign-in-fault").textContent = "";
  $("token").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    $("sign-in-form").onsubmit = async (event) => {
      event.preventDefault();
      const given = $("token").value.trim();
      const fault = await check(given);
      if (fault) {
        $("sign-in-fault").textContent = fault;
        $("token").select();
        return;
      }
      sessionStorage.setItem(KEY, given);
      dialog.close();
    };
    dialog.onclose = () => {
      redraw("operator");
      resolve(token());
    };
  });
}

async function check(given) {
  try {
    const answer = await fetch("v1/audit?limit=1", { headers: { Authorization: `Bearer ${given}` } });
    return answer.ok ? "" : (await answer.json()).detail;
  } catch {
    return "The server does not answer now.";
  }
}

// Calls a route with the token; null if there is none or the call was refused, which the person has been told.
export async function act(method, path) {
  const given = token() ?? (await signIn());
  if (!given) return null;
  try {
    const answer = await fetch(path, { method, headers: { Authorization: `Bearer ${given}` } });
    if (answer.ok) {
      loadAudit();
      return answer;
    }
    if (answer.status === 401) {
      signOut();
      return act(method, path);
    }
    toast((await answer.json()).detail);
  } catch {
    toast("The server does not answer now: try again.");
  }
  return null;
}

export function confirmed(title, text, yes) {
  const dialog = $("confirm");
  write($("confirm-title"), title);
  write($("confirm-text"), text);
  write($("confirm-yes"), yes);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    $("confirm-yes").onclick = () => dialog.close("yes");
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}

function signOut() {
  sessionStorage.removeItem(KEY);
  redraw("operator");
}

async function loadAudit() {
  const answer = await fetch("v1/audit?limit=100", { headers: { Authorization: `Bearer ${token()}` } });
  if (!answer.ok) return;
  const rows = (await answer.json()).map((entry) =>
    element(
      "tr",
      {},
      element("td", {}, moment(new Date(entry.at))),
      element("td", {}, entry.actor),
      element("td", {}, entry.action.replaceAll("_", " ")),
      element("td", {}, entry.task ?? "–"),
      element("td", {}, entry.outcome === "done" ? "Done" : `Refused: ${entry.outcome}`),
    ),
  );
  $("audit-rows").replaceChildren(...rows);
}

part("operator", () => {
  write($("operator"), token() ? "Sign out" : "Sign in");
  $("audit").hidden = !token();
  if (token()) loadAudit();
});

export function setUpOperator() {
  $("operator").addEventListener("click", () => (token() ? signOut() : signIn()));
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  redraw("operator");
}
