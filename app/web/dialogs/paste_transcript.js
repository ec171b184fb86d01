// The dialog that turns a pasted transcript into a conversation. The text is parsed on every input.

import { h } from "../lib/dom.js";
import { parseTranscript } from "../lib/transcript.js";
import { buttons, close, open } from "./dialog.js";

export function openPasteDialog(onTranscript) {
  const status = h("p", { class: "muted", role: "status" }, "Nothing pasted yet.");
  let transcript = null;
  const useButton = h(
    "button",
    {
      type: "button",
      class: "main",
      disabled: true,
      onclick: () => {
        onTranscript(transcript);
        close();
      },
    },
    "Use it",
  );
  const parse = (event) => {
    transcript = parseTranscript(event.target.value);
    useButton.disabled = !transcript;
    status.textContent = transcript
      ? `${transcript.messages.length} turn(s), ${transcript.responses.length} response(s).`
      : "No conversation that ends with an assistant response was recognised.";
  };
  open(
    "Paste a transcript",
    h(
      "p",
      { class: "muted" },
      "Human: and Assistant: lines, ChatML, or JSON: messages, prompt with chosen and rejected, or an API request. The last assistant turn is the response.",
    ),
    h("textarea", { "aria-label": "Transcript", rows: 12, oninput: parse }),
    status,
    buttons(useButton),
  );
}
