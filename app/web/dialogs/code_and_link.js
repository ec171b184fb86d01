// Shows the page's request as curl and Python code, and the page's state as a link. The API key is never included.

import { apiKey } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { activeFactors, scoreBody } from "../lib/scoring.js";
import { toFragment } from "../lib/state.js";
import { buttons, open } from "./dialog.js";

const TOP_K = 12;
const KEY_VARIABLE = "SPARSERM_KEY";
const PYTHON_LITERALS = { true: "True", false: "False", null: "None" };

export function showCode(state) {
  const body = JSON.stringify(requestBody(state), null, 2);
  const snippets = [
    ["curl", curlCode(body)],
    ["Python", pythonCode(body)],
  ];
  open(
    "This request as code",
    ...snippets.flatMap(([name, text]) => copyable(name, text)),
    apiKey.get() && h("p", { class: "muted small" }, `Set the environment variable ${KEY_VARIABLE} to your key.`),
    buttons(),
  );
}

export async function showLink(state) {
  const link = new URL(`#${await toFragment(state)}`, absoluteUrl(""));
  open(
    "A link to this state",
    h(
      "p",
      { class: "muted" },
      "The texts are in the part after #. Browsers do not send that part to any server, but anyone with the link can read it.",
    ),
    ...copyable("Link", link.href),
    buttons(),
  );
}

// The request for all models, or, if the selected model is steered, for that model with its factors.
function requestBody(state) {
  const steer = activeFactors(state, state.model);
  const inputs = state.scored ?? state;
  return {
    model: steer ? state.model : inputs.models,
    ...scoreBody(inputs),
    top_k: TOP_K,
    ...(steer && { steer }),
  };
}

// The absolute URL of a path, without a key that the page's own path may contain (/k/KEY/).
function absoluteUrl(path) {
  return new URL(path, document.baseURI.replace(/#.*/, "").replace(/\/k\/[^/]+\//, "/"));
}

function curlCode(body) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const auth = apiKey.get() ? ` \\\n  -H "Authorization: Bearer $${KEY_VARIABLE}"` : "";
  return `curl -sS ${quote(absoluteUrl("v1/rewards").href)} -H 'Content-Type: application/json'${auth} \\\n  -d ${quote(body)}`;
}

// JSON becomes a Python literal: true, false and null are replaced, except inside strings.
function pythonCode(body) {
  const literal = body.replace(
    /"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b/g,
    (token) => PYTHON_LITERALS[token] ?? token,
  );
  const auth = apiKey.get() ? `, "Authorization": "Bearer " + os.environ["${KEY_VARIABLE}"]` : "";
  return `import json
${apiKey.get() ? "import os\n" : ""}import urllib.request

body = ${literal}
request = urllib.request.Request(
    ${JSON.stringify(absoluteUrl("v1/rewards").href)},
    json.dumps(body).encode(),
    {"Content-Type": "application/json"${auth}},
)
with urllib.request.urlopen(request) as answer:
    for row in json.load(answer)["data"]:
        print(row["model"], row["response"], row.get("reward"), row.get("uncertainty"))
`;
}

function copyable(name, text) {
  const code = h("pre", { tabindex: 0, role: "group", "aria-label": name }, text);
  const status = h("span", { class: "muted", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(code);
      status.textContent = "Selected; copy it with the keyboard.";
    }
  };
  return [
    h(
      "div",
      { class: "title-row" },
      h("h3", {}, name),
      status,
      h("button", { type: "button", onclick: copy }, `Copy ${name}`),
    ),
    code,
  ];
}
