// Elements and numbers, as every part of the page writes them.

export const $ = (id) => document.getElementById(id);

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function button(text, work) {
  const made = element("button", text);
  made.type = "button";
  made.addEventListener("click", work);
  return made;
}

export function show(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

// Put children into a place where they differ from those that are there: a selection or a click
// that is under way survives a look at the server. The focus stays on the element of the same id.
export function replace(place, ...children) {
  const made = place.cloneNode(false);
  made.append(...children);
  if (place.isEqualNode(made)) return;
  const focused = place.contains(document.activeElement) && document.activeElement.id;
  place.replaceChildren(...made.childNodes);
  if (focused) $(focused)?.focus({ preventScroll: true });
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}

export function short(value) {
  const units = ["", " k", " M", " G", " T"];
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < units.length - 1) (value /= 1000), (unit += 1);
  return number(value) + units[unit];
}
