// Asks for the API key. The key is stored in this tab's session storage only.

import { ApiError, apiKey } from "../lib/api.js";
import { byId, h } from "../lib/dom.js";
import { buttons, close, open } from "./dialog.js";

// Stores the key that the visitor enters; throws if the dialog is closed without one.
export async function promptForKey(wasRejected) {
  const input = h("input", { id: "key", type: "password", autocomplete: "off", required: true });
  const submit = (event) => {
    event.preventDefault();
    apiKey.set(input.value.trim());
    close("submitted");
  };
  const result = await open(
    "This server requires an API key",
    h(
      "form",
      { onsubmit: submit },
      h(
        "p",
        { class: "muted" },
        wasRejected
          ? "The server rejected the key."
          : "It is stored in this tab until you close it, and sent to this server only.",
      ),
      h("label", { for: "key" }, "Key"),
      input,
      buttons(h("button", { type: "submit", class: "main" }, "Unlock")),
    ),
  );
  showForgetButton();
  if (result !== "submitted") throw new ApiError("The server requires an API key. Click Score to enter one.", 401);
}

export function showForgetButton() {
  const button = byId("forget-key");
  button.hidden = apiKey.get() === null;
  button.onclick = () => {
    apiKey.forget();
    location.reload();
  };
}
