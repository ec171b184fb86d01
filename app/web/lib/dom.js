// Builds DOM elements. Text from users or models is always inserted as text, never parsed as markup.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "selected", "open"]);

export function h(tag, attributes = {}, ...children) {
  return configure(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return configure(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

// A <data> element: the rounded, signed number as text, and the server's exact number as its value.
export function number(value, digits = 2) {
  const text = signed(value, digits);
  const colour = Number(text) === 0 ? "muted" : signClass(value);
  return h("data", { value: String(value), class: `number ${colour}`, title: String(value) }, text);
}

export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : "+") + text;
}

export function signClass(value) {
  return value < 0 ? "minus" : "plus";
}

export function responseLetter(response) {
  return response < 26 ? String.fromCharCode(65 + response) : `#${response + 1}`;
}

// A button that extends a list that shows only its first entries.
export function showMoreButton(onclick) {
  return h("button", { type: "button", class: "link-button", onclick }, "Show more");
}

// `on…` attributes become event listeners, and `cssVars` sets custom properties of the element's style.
function configure(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "cssVars") setCssVars(element, value);
    else if (PROPERTIES.has(name) && name in element) element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function setCssVars(element, cssVars) {
  for (const [name, value] of Object.entries(cssVars)) element.style.setProperty(name, value);
}
