// A transcript, pasted: read as soon as it makes sense.

import { buttons, close, open } from "./dialog.js";
import { h } from "./dom.js";
import { read } from "./transcript.js";

export function pasting(take) {
  const said = h("p", { class: "quiet", role: "status" }, "Nothing pasted yet.");
  let found = null;
  const use = h(
    "button",
    {
      type: "button",
      class: "main",
      disabled: true,
      onclick: () => {
        take(found);
        close();
      },
    },
    "Use it",
  );
  const look = (event) => {
    found = read(event.target.value);
    use.disabled = !found;
    said.textContent = found
      ? `${found.messages.length} turn(s), ${found.responses.length} response(s).`
      : "No conversation that ends with a response can be made out.";
  };
  open(
    "Paste a transcript",
    h(
      "p",
      { class: "quiet" },
      "Human: and Assistant: lines, ChatML, or JSON: messages, prompt with chosen and rejected, or an API request. The last assistant turn is the response.",
    ),
    h("textarea", { "aria-label": "Transcript", rows: 12, oninput: look }),
    said,
    buttons(use),
  );
}
