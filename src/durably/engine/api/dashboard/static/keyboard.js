// Keys: / search, j and k move between rows (Enter opens the link with the focus), x selects one, g with a letter goes to a page, ? helps, Esc leaves.

import { toggleRow } from "./select.js";

const SECONDS_FOR_SECOND_KEY = 1.2;

export function listenForKeys() {
  let goUntil = 0;
  const button = document.getElementById("open-help");
  button.hidden = false;
  button.addEventListener("click", openHelp);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "Escape") return leave(event);
    if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
    if (performance.now() < goUntil) {
      goUntil = 0;
      const link = document.querySelector(`.page-bar a[data-key="${CSS.escape(event.key)}"]`);
      if (link) link.click();
      return;
    }
    const action = ACTIONS[event.key] ?? linkAction(event.key);
    if (event.key === "g") goUntil = performance.now() + SECONDS_FOR_SECOND_KEY * 1000;
    else if (action && action() !== false) event.preventDefault();
  });
}

function openHelp() {
  document.getElementById("help").showModal();
}

const ACTIONS = {
  "/": () => {
    const field = document.querySelector("main [data-shortcut='/']") ?? document.getElementById("find");
    field?.focus();
    field?.select();
  },
  j: () => move(1),
  k: () => move(-1),
  x: toggleRow,
  "?": openHelp,
};

// Links of the attribute `data-shortcut`.
function linkAction(key) {
  const link = document.querySelector(`main a[data-shortcut="${CSS.escape(key)}"]`);
  return link && (() => link.click());
}

function isTyping(target) {
  if (target.type === "checkbox") return false;
  return target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName);
}

function leave(event) {
  if (isTyping(event.target)) event.target.blur();
  else if (!document.querySelector("dialog[open]")) linkAction("Escape")?.();
}

// The current row is the one whose link has the focus, so that Enter opens it and screen readers read it.
function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")].filter((row) => row.checkVisibility());
  if (!rows.length) return false;
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const row = rows[Math.min(Math.max(at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step, 0), rows.length - 1)];
  row.querySelector(".open").focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}
