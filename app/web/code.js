// What the page asked, as something to run elsewhere. A key is never written into it.

import { key } from "./api.js";
import { buttons, open } from "./dialog.js";
import { h } from "./dom.js";
import { active, request } from "./scoring.js";
import { toFragment } from "./state.js";

const TOP = 12;
const VARIABLE = "SPARSERM_KEY";
const WORDS = { true: "True", false: "False", null: "None" };

export function showCode(state) {
  const body = JSON.stringify(wish(state), null, 2);
  const parts = [
    ["curl", curl(body)],
    ["Python", python(body)],
  ];
  open(
    "The same request elsewhere",
    ...parts.flatMap(([name, text]) => copyable(name, text)),
    key.get() && h("p", { class: "quiet small" }, `Put your key into the variable ${VARIABLE}.`),
    buttons(),
  );
}

export async function showLink(state) {
  const link = new URL(`#${await toFragment(state)}`, address(""));
  open(
    "A link to this state",
    h(
      "p",
      { class: "quiet" },
      "The texts are in the part after #, which browsers keep to themselves: no server is sent it, but whoever has the link can read them.",
    ),
    ...copyable("Link", link.href),
    buttons(),
  );
}

// What is asked now: of all models, or, while it is steered, of the one looked at.
function wish(state) {
  const steer = active(state, state.model);
  const asked = state.scored ?? state;
  return { model: steer ? state.model : asked.models, ...request(asked), top_k: TOP, ...(steer && { steer }) };
}

function address(path) {
  return new URL(path, document.baseURI.replace(/#.*/, "").replace(/\/k\/[^/]+\//, "/"));
}

function curl(body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const secret = key.get() ? ` \\\n  -H "Authorization: Bearer $${VARIABLE}"` : "";
  return `curl -sS ${quoted(address("v1/rewards").href)} -H 'Content-Type: application/json'${secret} \\\n  -d ${quoted(body)}`;
}

// JSON with Python's words in place of its own; those inside strings are left alone.
function python(body) {
  const literal = body.replace(/"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b/g, (one) => WORDS[one] ?? one);
  const secret = key.get() ? `, "Authorization": "Bearer " + os.environ["${VARIABLE}"]` : "";
  return `import json
${key.get() ? "import os\n" : ""}import urllib.request

body = ${literal}
request = urllib.request.Request(
    ${JSON.stringify(address("v1/rewards").href)},
    json.dumps(body).encode(),
    {"Content-Type": "application/json"${secret}},
)
with urllib.request.urlopen(request) as answer:
    for row in json.load(answer)["data"]:
        print(row["model"], row["response"], row.get("reward"), row.get("uncertainty"))
`;
}

function copyable(name, text) {
  const shown = h("pre", { tabindex: 0, role: "group", "aria-label": name }, text);
  const said = h("span", { class: "quiet", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(shown);
      said.textContent = "Selected; copy it with the keyboard.";
    }
  };
  return [
    h(
      "div",
      { class: "titled" },
      h("h3", {}, name),
      said,
      h("button", { type: "button", onclick: copy }, `Copy ${name}`),
    ),
    shown,
  ];
}
