// A click on a part of a row that lies above its link, such as an id or a time with a title, opens the link.

const CONTROLS = "a, button, input, select, textarea, label, summary";

export function openRows() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-row]")?.querySelector(".open");
    if (!link || event.target.closest(CONTROLS) || isSelected(event.target)) return;
    const { ctrlKey, metaKey, shiftKey } = event;
    link.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true, ctrlKey, metaKey, shiftKey }));
  });
}

function isSelected(element) {
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(element, true);
}
