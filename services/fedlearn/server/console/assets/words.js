// How figures, times and states are said.

export const number = (value) => value.toLocaleString("en-US");
export const percent = (value) => `${(100 * value).toFixed(value > 0.9995 ? 2 : 1)} %`;
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

export function duration(seconds) {
  if (seconds < 0.1) return "< 0.1 s";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole} s`;
  if (whole < 5400) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function ago(seconds) {
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function size(bytes) {
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(bytes < 1e4 ? 1 : 0)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
export function moment(date) {
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
}

// state or standing -> [what a person reads, tone]
export const TASK = {
  waiting_for_model: ["Waiting for its model", "warn"],
  running: ["Running", "live"],
  paused: ["Paused", "warn"],
  completed: ["Completed", "good"],
  failed: ["Failed", "bad"],
  cancelled: ["Cancelled", ""],
};
export const DEVICE = {
  selected: ["Selected", "none"],
  accepted: ["Training", "live"],
  reported: ["Reported", "good"],
  refused: ["Refused", "bad"],
  dropped: ["Dropped out", "warn"],
  ready: ["Ready", "none"],
  starting: ["Starting", "none"],
  leaving: ["Leaving", "warn"],
  away: ["Away", ""],
};
