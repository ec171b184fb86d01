// The page's single <dialog>; each caller gives its title and content.

import { byId, h } from "../lib/dom.js";

// Opens the dialog. The promise resolves when it closes, to the value passed to `close`.
export function open(title, ...content) {
  const dialog = byId("dialog");
  dialog.replaceChildren(h("h2", { id: "dialog-title" }, title), ...content.filter(Boolean));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

export function close(value = "") {
  byId("dialog").close(value);
}

export function buttons(...children) {
  return h("div", { class: "actions" }, ...children, h("button", { type: "button", onclick: () => close() }, "Close"));
}
