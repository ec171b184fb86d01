// Elements are built, never parsed: whatever anybody wrote goes in as text, so it cannot become markup.

const SVG = "http://www.w3.org/2000/svg";
const AS_PROPERTY = new Set(["value", "checked", "disabled", "hidden", "selected", "open"]);

export function h(tag, given = {}, ...children) {
  return dress(document.createElement(tag), given, children);
}

export function svg(tag, given = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), given, children);
}

export function at(id) {
  return document.getElementById(id);
}

// A number as people read it, and, as the element's value, exactly as the server gave it.
export function number(value, digits = 2) {
  const text = signed(value, digits);
  const colour = Number(text) === 0 ? "quiet" : tone(value);
  return h("data", { value: String(value), class: `number ${colour}`, title: String(value) }, text);
}

export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : "+") + text;
}

export function tone(value) {
  return value < 0 ? "minus" : "plus";
}

export function letter(response) {
  return response < 26 ? String.fromCharCode(65 + response) : `#${response + 1}`;
}

// Lists show their first entries; this asks for the next ones.
export function further(onclick) {
  return h("button", { type: "button", class: "slight", onclick }, "Show more");
}

function dress(element, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "place") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (AS_PROPERTY.has(name) && name in element) element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
