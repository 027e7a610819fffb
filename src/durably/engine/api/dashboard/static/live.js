// Updates the parts of the page that are marked as live when the engine reports a change, at most once a second, and for
// at most a tenth of the time.

import { fetchPage } from "./page.js";

const LEAST_MILLISECONDS = 1000;
// For as long the page may be without a stream before it says so.
const QUIET_MILLISECONDS = 8000;

let fetching = false;
let pending = false;
let last = Date.now();
let cost = 0;

export async function refresh() {
  if (fetching) {
    pending = true;
    return;
  }
  fetching = true;
  const began = Date.now();
  try {
    const page = await fetchPage(location.href);
    for (const old of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(old.id);
      if (fresh) morph(old, fresh);
    }
    document.title = page.title;
    document.dispatchEvent(new CustomEvent("durably:updated"));
  } finally {
    fetching = false;
    last = Date.now();
    cost = last - began;
    if (pending) schedule();
  }
}

// Links of the attribute `data-soft` change the page in place.
function listenForLinks() {
  addEventListener("popstate", () => refresh().catch(() => location.reload()));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-soft]");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    goTo(link.href, link.dataset.soft === "replace").catch(() => location.assign(link.href));
  });
}

// Bars of what has not ended grow with time, without a change of the engine.
function keepGrowing() {
  setInterval(() => {
    const seconds = document.querySelector("[data-growth]")?.dataset.growth;
    if (seconds && !document.hidden && Date.now() - last > seconds * 1000) refresh().catch(() => {});
  }, 1000);
}

let timer = null;

function schedule() {
  pending = false;
  timer ??= setTimeout(() => {
    timer = null;
    refresh().catch(() => {});
  }, Math.max(0, last + Math.max(LEAST_MILLISECONDS, 9 * cost) - Date.now()));
}

export function followChanges() {
  let path = document.body.dataset.liveUrl;
  listenForLinks();
  keepGrowing();
  if (!path) return;
  let stream = null;
  let opened = 0;
  const connection = document.getElementById("connection");
  const open = () => {
    stream = new EventSource(path);
    stream.onopen = () => {
      opened = Date.now();
      connection.replaceChildren();
    };
    stream.onmessage = (event) => {
      const next = new URL(path, location.href);
      next.searchParams.set("after", event.data);
      path = next.pathname + next.search;
      schedule();
    };
    stream.onerror = () => {
      // The browser opens the stream again by itself, unless the server refuses it. A server under WSGI ends each
      // stream at once, and the browser waits for some seconds between two.
      if (stream.readyState === EventSource.CLOSED) connection.textContent = "Not live: reload the page";
      else setTimeout(() => {
        const isOpen = stream?.readyState === EventSource.OPEN || Date.now() - opened < QUIET_MILLISECONDS;
        if (stream && !isOpen) connection.textContent = "Reconnecting…";
      }, QUIET_MILLISECONDS);
    };
  };
  const close = () => {
    stream?.close();
    stream = null;
  };
  // A hidden page costs the engine nothing.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : stream ?? open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && !stream && open());
  if (!document.hidden) open();
}

// Goes to another state of the same page without loading it again.
export async function goTo(url, isReplaced) {
  history[isReplaced ? "replaceState" : "pushState"](null, "", url);
  await refresh();
}

// Makes `old` equal to `fresh`, and keeps each element that is in both: its focus, scroll position, and what the reader
// has opened or typed.
export function morph(old, fresh) {
  if (old.hasAttribute("data-kept")) return;
  morphAttributes(old, fresh);
  const byId = new Map([...old.children].filter((each) => each.id).map((each) => [each.id, each]));
  const wanted = new Set([...fresh.children].map((each) => each.id).filter(Boolean));
  let next = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    let match = node.id ? byId.get(node.id) : null;
    if (!match) {
      while (next && next.id && !wanted.has(next.id)) next = remove(next);
      if (next && !next.id && !node.id && next.nodeName === node.nodeName) match = next;
    }
    if (!match) {
      old.insertBefore(node, next);
      continue;
    }
    if (match === next) next = next.nextSibling;
    else old.insertBefore(match, next);
    if (match.nodeType !== Node.ELEMENT_NODE) {
      if (match.nodeValue !== node.nodeValue) match.nodeValue = node.nodeValue;
    } else if (!match.isEqualNode(node)) morph(match, node);
  }
  while (next) next = remove(next);
}

function remove(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

// Attributes that belong to the reader.
const KEPT = new Set(["open", "value", "checked"]);

function morphAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !KEPT.has(name) && !name.startsWith("data-kept")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !KEPT.has(name)) old.setAttribute(name, value);
  }
}
