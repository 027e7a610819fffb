// Times in the reader's zone, and durations that grow. Pages have times in UTC.

const absolute = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
});
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const exact = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
  fractionalSecondDigits: 3, timeZoneName: "short",
});
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

export function formatDuration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  let rest = Math.round(seconds);
  const parts = [];
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    const count = Math.floor(rest / length);
    rest %= length;
    if (count || parts.length) parts.push(`${count}${unit}`);
  }
  return parts.slice(0, 2).filter((part) => !part.startsWith("0")).join(" ");
}

function formatAgo(time) {
  const seconds = (time - Date.now()) / 1000;
  if (Math.abs(seconds) < 1) return "now";
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length) return relative.format(Math.trunc(seconds / length), unit);
  }
  return "now";
}

function format(time, style) {
  if (style === "time") return clock.format(time);
  if (style === "clock") return minute.format(time);
  if (style === "day") return day.format(time);
  return style === "full" ? absolute.format(time) : formatAgo(time);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function localise(root) {
  for (const element of root.querySelectorAll("time[data-time]")) {
    const time = new Date(element.dateTime);
    setText(element, format(time, element.dataset.time));
    element.title = exact.format(time);
  }
  for (const element of root.querySelectorAll("[data-since]")) {
    const seconds = Math.max(0, (Date.now() - new Date(element.dataset.since)) / 1000);
    setText(element, seconds < 10 ? `${seconds.toFixed(1)} s` : formatDuration(seconds));
  }
}

export function keepTimes() {
  setInterval(() => {
    if (!document.hidden) localise(document);
  }, 1000);
}
