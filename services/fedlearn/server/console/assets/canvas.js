// The theme's colours as a canvas takes them: read once a theme, through an element that wears each.

const NAMES = ["ink", "muted", "line", "edge", "accent", "good", "warn", "bad", "surface"];
let known = null;

export function colours() {
  if (known) return known;
  const probe = document.createElement("span");
  document.body.append(probe);
  known = {};
  for (const name of NAMES) {
    probe.style.color = `var(--${name})`;
    known[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return known;
}

export function forgetColours() {
  known = null;
}
