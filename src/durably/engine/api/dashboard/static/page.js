// Enhancements of the page: functions of an element, called for the page and for each part that is fetched later.

const enhancements = [];

export function onEnhance(enhancement) {
  enhancements.push(enhancement);
}

export function enhance(root) {
  for (const enhancement of enhancements) enhancement(root);
}

export async function fetchPage(url) {
  const response = await fetch(url, { headers: { accept: "text/html" }, credentials: "same-origin" });
  if (!response.ok) throw new Error(`${response.status} of ${url}`);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  enhance(page);
  return page;
}
