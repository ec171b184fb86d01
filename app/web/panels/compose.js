// The form on the left: a conversation, the responses to compare, and the models that score them. Typed text goes
// into the store; a list is rebuilt only when its length changes, so that typing keeps the focus.

import { openPasteDialog } from "../dialogs/paste_transcript.js";
import { byId, h, responseLetter } from "../lib/dom.js";
import { EXAMPLES, exampleState } from "../lib/examples.js";
import { hasChanged, modelNames, ROLES } from "../lib/state.js";

export function renderForm(store, actions) {
  const draw = (state, previous) => {
    if (isListChanged(state, previous, "messages")) drawTurns(store);
    if (isListChanged(state, previous, "responses")) drawResponses(store);
    if (!previous || hasChanged(state, previous, "cards", "models")) drawModels(store);
    byId("length-control").checked = state.lengthControl;
    drawStatus(state);
  };
  bindControls(store, actions);
  store.subscribe(draw);
  draw(store.state, null);
}

function isListChanged(state, previous, field) {
  return !previous || state[field].length !== previous[field].length || state.formVersion !== previous.formVersion;
}

function bindControls(store, actions) {
  byId("examples").replaceChildren(
    h("span", { class: "muted" }, "Examples:"),
    ...EXAMPLES.map((example) =>
      h("button", { type: "button", class: "link-button", onclick: () => show(example) }, example.title),
    ),
  );
  const show = (example) => {
    store.set(exampleState(example, store.state, modelNames(store.state.cards)));
    actions.score();
  };
  byId("add-message").onclick = () => {
    const role = store.state.messages.at(-1)?.role === "user" ? "assistant" : "user";
    store.set({ messages: [...store.state.messages, { role, content: "" }] });
    byId("messages").lastChild.querySelector("textarea").focus();
  };
  byId("add-response").onclick = () => {
    store.set({ responses: [...store.state.responses, ""] });
    byId("responses").lastChild.querySelector("textarea").focus();
  };
  byId("paste").onclick = () => openPasteDialog((transcript) => store.set({ ...transcript, formVersion: {} }));
  byId("length-control").onchange = (event) => store.set({ lengthControl: event.target.checked });
  byId("compose").onsubmit = (event) => {
    event.preventDefault();
    actions.score();
  };
  byId("compose").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("compose").requestSubmit();
  };
}

function drawTurns(store) {
  const updateTurn = (index, change) =>
    store.set({ messages: store.state.messages.map((turn, i) => (i === index ? { ...turn, ...change } : turn)) });
  byId("messages").replaceChildren(
    ...store.state.messages.map(({ role, content }, i) =>
      h(
        "div",
        { class: "turn" },
        h(
          "div",
          { class: "title-row" },
          roleSelect(i, role, (newRole) => updateTurn(i, { role: newRole })),
          store.state.messages.length > 1 &&
            removeButton(
              `Remove turn ${i + 1}`,
              () => store.set({ messages: store.state.messages.filter((_, j) => j !== i) }),
              byId("add-message"),
            ),
        ),
        textArea(`Turn ${i + 1}`, content, (value) => updateTurn(i, { content: value })),
      ),
    ),
  );
}

function roleSelect(index, selected, onSelect) {
  return h(
    "select",
    { "aria-label": `Role of turn ${index + 1}`, onchange: (event) => onSelect(event.target.value) },
    ROLES.map((role) => h("option", { selected: role === selected }, role)),
  );
}

function drawResponses(store) {
  const updateResponse = (index, value) =>
    store.set({ responses: store.state.responses.map((text, i) => (i === index ? value : text)) });
  byId("responses").replaceChildren(
    ...store.state.responses.map((content, i) =>
      h(
        "div",
        { class: "turn response" },
        h(
          "div",
          { class: "title-row" },
          h("span", { class: "letter", "aria-hidden": "true" }, responseLetter(i)),
          store.state.responses.length > 1 &&
            removeButton(
              `Remove response ${responseLetter(i)}`,
              () => store.set({ responses: store.state.responses.filter((_, j) => j !== i) }),
              byId("add-response"),
            ),
        ),
        textArea(`Response ${responseLetter(i)}`, content, (value) => updateResponse(i, value)),
      ),
    ),
  );
}

// The chips keep the order of the cards. They are not rebuilt while one has the focus and the list is the same.
function drawModels(store) {
  const { cards, models } = store.state;
  const names = modelNames(cards);
  const select = (event) => {
    const { value, checked } = event.target;
    const others = store.state.models.filter((name) => name !== value);
    const selected = checked ? [...others, value] : others;
    store.set({ models: names.filter((name) => selected.includes(name)) });
  };
  if (byId("models").childElementCount === names.length && byId("models").contains(document.activeElement)) return;
  byId("models").replaceChildren(
    ...names.map((name) => {
      const card = cards.find(({ id }) => id === name.split("@")[0]);
      const description = card.composite?.about ?? card.use ?? "";
      return h(
        "label",
        { class: "chip", title: description },
        h("input", { type: "checkbox", value: name, checked: models.includes(name), onchange: select }),
        h("span", {}, name),
      );
    }),
  );
}

function drawStatus(state) {
  const { scored } = state;
  const isEdited =
    scored &&
    (scored.models.join() !== state.models.join() ||
      hasChanged(state, scored, "messages", "responses", "lengthControl"));
  const missing = !state.models.length ? "Choose a reward model." : null;
  byId("results").setAttribute("aria-busy", state.busy);
  byId("score").disabled = Boolean(missing);
  byId("score").classList.toggle("needs-scoring", Boolean(isEdited));
  byId("status").textContent =
    missing ?? (state.busy ? "Scoring…" : isEdited ? "Edited since the last scoring." : costText(scored));
  byId("problem").hidden = !state.problem;
  byId("problem").textContent = state.problem ?? "";
}

function costText(scored) {
  if (!scored) return "";
  const { usage, timings } = scored;
  const isTruncated = Object.values(scored.rows)
    .flat()
    .some((row) => row.truncated);
  const note = isTruncated ? " Truncated on the left: the text is longer than the server's limit." : "";
  const total = usage.prompt_tokens + usage.response_tokens;
  return `${total} tokens, ${usage.computed_tokens} computed, ${Math.round(timings.device_ms)} ms.${note}`;
}

function textArea(label, content, onInput) {
  return h("textarea", {
    "aria-label": label,
    rows: 2,
    spellcheck: "false",
    value: content,
    oninput: (event) => onInput(event.target.value),
  });
}

// A button that removes an entry and moves the focus to `nextFocus`.
function removeButton(label, remove, nextFocus) {
  return h(
    "button",
    {
      type: "button",
      class: "link-button",
      "aria-label": label,
      onclick: () => {
        remove();
        nextFocus.focus();
      },
    },
    "Remove",
  );
}
