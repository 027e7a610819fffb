// Zooms the time axis of a run to the part that the pointer selects.

import { goTo } from "./live.js";

const LEAST_PIXELS = 6;

export function selectWindows() {
  document.addEventListener("pointerdown", (event) => {
    const body = event.target.closest?.(".w-body");
    if (!body || event.button || event.pointerType === "touch") return;
    const axis = body.querySelector(".w-grid").getBoundingClientRect();
    if (event.clientX >= axis.left && event.clientX <= axis.right) follow(body, axis, event);
  });
  // Bars are above the row's link, for their titles.
  document.addEventListener("click", (event) => {
    const bars = event.target.closest?.(".w-bars");
    if (bars && !event.defaultPrevented) bars.closest("[data-row]").querySelector(".open").click();
  });
}

function follow(body, axis, down) {
  const selection = body.querySelector(".w-selection");
  const clamp = (x) => Math.min(Math.max(x, axis.left), axis.right);
  const range = (event) => [down.clientX, clamp(event.clientX)].sort((a, b) => a - b);
  const isLong = ([from, to]) => to - from >= LEAST_PIXELS;

  const move = (event) => {
    const [from, to] = range(event);
    selection.hidden = !isLong([from, to]);
    const left = body.getBoundingClientRect().left;
    selection.style.left = `${from - left}px`;
    selection.style.width = `${to - from}px`;
    if (!selection.hidden) event.preventDefault();
  };
  const stop = (event) => {
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", up);
    removeEventListener("pointercancel", stop);
    selection.hidden = true;
    return event;
  };
  const up = (event) => {
    stop(event);
    const [from, to] = range(event);
    if (!isLong([from, to])) return;
    // The click that follows would open the row.
    addEventListener("click", (click) => click.preventDefault(), { capture: true, once: true });
    setTimeout(() => zoom(body, (from - axis.left) / axis.width, (to - axis.left) / axis.width));
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", up);
  addEventListener("pointercancel", stop);
}

function zoom(body, from, to) {
  const [start, end] = body.closest("[data-window]").dataset.window.split("-").map(Number);
  const at = (share) => start + share * (end - start);
  const first = Math.floor(at(from));
  const url = new URL(location.href);
  url.searchParams.set("zoom", `${first}-${Math.max(Math.ceil(at(to)), first + 1)}`);
  goTo(url, true).catch(() => location.assign(url));
}
