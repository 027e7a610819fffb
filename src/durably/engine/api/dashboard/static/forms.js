// Forms: filters without empty fields in the URL, questions before changes, no change sent twice; and buttons to copy.

const COPIES = "[data-copy], [data-copy-before]";

let isListening = false;

export function enhanceForms(root) {
  for (const field of root.querySelectorAll("input[data-utc]")) showLocally(field);
  for (const button of root.querySelectorAll(COPIES)) button.hidden = !navigator.clipboard;
  if (isListening || root !== document) return;
  isListening = true;
  document.addEventListener("submit", onSubmit);
  document.addEventListener("click", onClick);
  document.addEventListener("change", onChange);
  document.addEventListener("formdata", onFormData);
  addEventListener("pageshow", allowSending);
}

// The server writes and reads times in UTC. The reader sees and enters those of the own zone.
function showLocally(field) {
  for (const zone of field.closest("label").querySelectorAll(".zone")) zone.hidden = true;
  if (!field.value) return;
  const time = new Date(`${field.value}Z`);
  field.value = new Date(time - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

function onFormData(event) {
  for (const field of event.target.querySelectorAll("input[data-utc]")) {
    if (field.value) event.formData.set(field.name, new Date(field.value).toISOString().slice(0, 19));
  }
}

function onSubmit(event) {
  const form = event.target;
  const question = event.submitter?.dataset.confirm ?? form.dataset.confirm;
  if (question && !confirm(question)) {
    event.preventDefault();
    return;
  }
  if (form.method === "get") {
    event.preventDefault();
    location.assign(urlOf(form, event.submitter));
  } else if (form.method === "post") {
    if (form.dataset.keptSent) event.preventDefault();
    form.dataset.keptSent = "yes";
  }
}

function urlOf(form, submitter) {
  const url = new URL(form.action);
  url.search = "";
  for (const [name, value] of new FormData(form, submitter)) {
    if (typeof value === "string" && value.trim()) url.searchParams.set(name, value.trim());
  }
  return url;
}

// A choice of a filter applies at once; text does when it is submitted.
function onChange(event) {
  const form = event.target.form;
  if (form && "filters" in form.dataset && event.target.localName === "select") form.requestSubmit();
}

// The notice of an action is shown once: not again when the page is loaded again, or its address is shared.
export function forgetNotice() {
  const url = new URL(location.href);
  url.searchParams.delete("notice");
  if (url.href !== location.href) history.replaceState(history.state, "", url);
}

// The page may come back from the browser's cache.
function allowSending() {
  for (const form of document.querySelectorAll("form[data-kept-sent]")) delete form.dataset.keptSent;
}

function textToCopy(button) {
  if ("copyBefore" in button.dataset) return button.previousElementSibling.textContent;
  return button.dataset.copy;
}

async function onClick(event) {
  const button = event.target.closest?.(COPIES);
  if (!button) return;
  await navigator.clipboard.writeText(textToCopy(button));
  button.classList.add("copied");
  button.title = "Copied";
  setTimeout(() => {
    button.classList.remove("copied");
    button.title = "Copy";
  }, 1500);
}
