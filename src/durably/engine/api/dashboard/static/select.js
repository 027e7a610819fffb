// Rows that the reader has selected: how many there are, and the buttons for all of them.

export function selectRows() {
  const form = document.querySelector("[data-selection]");
  if (!form) return;
  let last = null;
  const boxes = () => [...document.querySelectorAll(`input[type=checkbox][form="${form.id}"]`)];
  const count = () => {
    const chosen = boxes().filter((box) => box.checked).length;
    form.hidden = !chosen;
    form.querySelector("[data-count]").textContent = `${chosen} selected`;
  };
  document.addEventListener("click", (event) => {
    const box = event.target;
    if (box.form !== form || box.type !== "checkbox") return;
    const all = boxes();
    const [from, to] = [all.indexOf(last), all.indexOf(box)].sort((a, b) => a - b);
    if (event.shiftKey && from >= 0) for (const each of all.slice(from, to + 1)) each.checked = box.checked;
    last = box;
    count();
  });
  form.querySelector("[data-all]").addEventListener("click", () => setAll(true));
  form.querySelector("[data-none]").addEventListener("click", () => setAll(false));
  document.addEventListener("durably:updated", count);
  addEventListener("pageshow", count);
  for (const button of form.querySelectorAll("[data-all], [data-none]")) button.hidden = false;
  count();

  function setAll(checked) {
    for (const box of boxes()) box.checked = checked;
    count();
  }
}

// Selects the row with the focus, or takes it out.
export function toggleRow() {
  const box = document.activeElement?.closest("[data-row]")?.querySelector("input[type=checkbox]");
  if (!box) return false;
  box.click();
  return true;
}
