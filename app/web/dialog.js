// The one dialog of the page: what it asks or shows is given by whoever opens it.

import { at, h } from "./dom.js";

// Opens with a title and content; resolves when it closes, with what it was closed with.
export function open(title, ...content) {
  const dialog = at("dialog");
  dialog.replaceChildren(h("h2", { id: "dialog-title" }, title), ...content.filter(Boolean));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

export function close(value = "") {
  at("dialog").close(value);
}

export function buttons(...children) {
  return h("div", { class: "actions" }, ...children, h("button", { type: "button", onclick: () => close() }, "Close"));
}
