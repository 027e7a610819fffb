// Loads the parts of JSON trees that were left out, when a reader asks for them.

import { fetchPage } from "./page.js";

export function loadValues() {
  document.addEventListener("click", async (event) => {
    const link = event.target.closest?.("a.json-more");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (link.hasAttribute("aria-busy")) return;
    link.setAttribute("aria-busy", "true");
    try {
      show(link, await fetchPage(link.href));
    } catch {
      location.assign(link.href);
    }
  });
}

// More items of a list take the place of the link; the whole of another value takes the place of its tree.
function show(link, page) {
  const tree = page.querySelector("main .json");
  link.closest("[data-value]").setAttribute("data-kept", "");
  const list = link.closest("li");
  const items = tree.querySelector(":scope > details > ul");
  if (items && new URL(link.href).searchParams.get("from") > 0 && list) {
    list.replaceWith(...items.children);
    return;
  }
  const key = link.parentElement.querySelector(":scope > .json-key");
  const part = tree.firstElementChild;
  if (key && part.localName === "details") part.querySelector("summary").prepend(key, ": ");
  const holder = link.closest("p") ?? link;
  holder.previousElementSibling?.matches(".json-string") && holder.previousElementSibling.remove();
  if (key && part.localName === "details") link.parentElement.replaceChildren(part);
  else holder.replaceWith(part);
}
