// The key prompt. The key lives in this tab's session storage, and nowhere else.

import { key, Refused } from "./api.js";
import { buttons, close, open } from "./dialog.js";
import { at, h } from "./dom.js";

export async function unlock(wasWrong) {
  const input = h("input", { id: "key", type: "password", autocomplete: "off", required: true });
  const submit = (event) => {
    event.preventDefault();
    key.set(input.value.trim());
    close("given");
  };
  const given = await open(
    "This server wants a key",
    h(
      "form",
      { onsubmit: submit },
      h(
        "p",
        { class: "quiet" },
        wasWrong
          ? "It does not know the key it was sent."
          : "It is kept in this tab until you close it, and sent to this server only.",
      ),
      h("label", { for: "key" }, "Key"),
      input,
      buttons(h("button", { type: "submit", class: "main" }, "Unlock")),
    ),
  );
  showForgetting();
  if (given !== "given") throw new Refused("The server wants a key. Score again to give one.", 401);
}

export function showForgetting() {
  const button = at("forget-key");
  button.hidden = key.get() === null;
  button.onclick = () => {
    key.forget();
    location.reload();
  };
}
