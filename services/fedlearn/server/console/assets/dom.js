// Small helpers: elements, text that is written only when it has changed, and one redraw a frame.

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

// Parts of the page by name; several changes of one frame are drawn once.
const parts = new Map();
const waiting = new Set();

export function part(name, draw) {
  parts.set(name, draw);
}

export function redraw(...names) {
  if (!waiting.size) requestAnimationFrame(drawAll);
  for (const name of names) waiting.add(name);
}

function drawAll() {
  const names = [...waiting];
  waiting.clear();
  for (const name of names) parts.get(name)?.();
}

export function command(text) {
  const button = element("button", { type: "button", "aria-label": "Copy the command" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return element("pre", { class: "command" }, element("code", {}, text), button);
}

let hideToast = 0;
export function toast(text) {
  $("toast").textContent = text;
  clearTimeout(hideToast);
  hideToast = setTimeout(() => ($("toast").textContent = ""), 8000);
}
