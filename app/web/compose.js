// The left side: a conversation, the responses to compare, and which models judge them. What is typed goes into
// the state; lists are drawn again only when they grow or shrink.

import { at, h, letter } from "./dom.js";
import { pasting } from "./pasting.js";
import { changed, namesOf, ROLES } from "./state.js";

export function compose(store, act) {
  const draw = (state, before) => {
    if (!before || state.messages.length !== before.messages.length || state.drawn !== before.drawn) drawTurns(store);
    if (!before || state.responses.length !== before.responses.length || state.drawn !== before.drawn)
      drawResponses(store);
    if (!before || changed(state, before, "cards", "models")) drawModels(store);
    at("length-control").checked = state.lengthControl;
    drawSending(state);
  };
  at("add-message").onclick = () => {
    const role = store.now.messages.at(-1)?.role === "user" ? "assistant" : "user";
    store.set({ messages: [...store.now.messages, { role, content: "" }] });
    at("messages").lastChild.querySelector("textarea").focus();
  };
  at("add-response").onclick = () => {
    store.set({ responses: [...store.now.responses, ""] });
    at("responses").lastChild.querySelector("textarea").focus();
  };
  at("paste").onclick = () => pasting((found) => store.set({ ...found, drawn: {} }));
  at("length-control").onchange = (event) => store.set({ lengthControl: event.target.checked });
  at("compose").onsubmit = (event) => {
    event.preventDefault();
    act.score();
  };
  at("compose").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("compose").requestSubmit();
  };
  store.watch(draw);
  draw(store.now, null);
}

function drawTurns(store) {
  const replace = (i, change) =>
    store.set({ messages: store.now.messages.map((one, j) => (i === j ? { ...one, ...change } : one)) });
  at("messages").replaceChildren(
    ...store.now.messages.map(({ role, content }, i) =>
      h(
        "div",
        { class: "turn" },
        h(
          "div",
          { class: "titled" },
          h(
            "select",
            { "aria-label": `Role of turn ${i + 1}`, onchange: (event) => replace(i, { role: event.target.value }) },
            ROLES.map((one) => h("option", { selected: one === role }, one)),
          ),
          store.now.messages.length > 1 &&
            remove(
              `Remove turn ${i + 1}`,
              () => store.set({ messages: store.now.messages.filter((_, j) => j !== i) }),
              at("add-message"),
            ),
        ),
        text(`Turn ${i + 1}`, content, (value) => replace(i, { content: value })),
      ),
    ),
  );
}

function drawResponses(store) {
  const replace = (i, value) => store.set({ responses: store.now.responses.map((one, j) => (i === j ? value : one)) });
  at("responses").replaceChildren(
    ...store.now.responses.map((content, i) =>
      h(
        "div",
        { class: "turn response" },
        h(
          "div",
          { class: "titled" },
          h("span", { class: "letter", "aria-hidden": "true" }, letter(i)),
          store.now.responses.length > 1 &&
            remove(
              `Remove response ${letter(i)}`,
              () => store.set({ responses: store.now.responses.filter((_, j) => j !== i) }),
              at("add-response"),
            ),
        ),
        text(`Response ${letter(i)}`, content, (value) => replace(i, value)),
      ),
    ),
  );
}

function drawModels(store) {
  const { cards, models } = store.now;
  const names = namesOf(cards);
  const choose = (event) => {
    const chosen = event.target.value;
    const rest = store.now.models.filter((one) => one !== chosen);
    const wanted = event.target.checked ? [...rest, chosen] : rest;
    store.set({ models: names.filter((one) => wanted.includes(one)) });
  };
  if (at("models").childElementCount === names.length && at("models").contains(document.activeElement)) return;
  at("models").replaceChildren(
    ...names.map((name) => {
      const card = cards.find((one) => one.id === name.split("@")[0]);
      const about = card.composite?.about ?? card.use ?? "";
      return h(
        "label",
        { class: "chip", title: about },
        h("input", { type: "checkbox", value: name, checked: models.includes(name), onchange: choose }),
        h("span", {}, name),
      );
    }),
  );
}

function drawSending(state) {
  const { scored } = state;
  const edited =
    scored &&
    (scored.models.join() !== state.models.join() || changed(state, scored, "messages", "responses", "lengthControl"));
  const missing = !state.models.length ? "Choose a reward model." : null;
  at("results").setAttribute("aria-busy", state.busy);
  at("score").disabled = Boolean(missing);
  at("score").classList.toggle("due", Boolean(edited));
  at("status").textContent =
    missing ?? (state.busy ? "Scoring…" : edited ? "Edited since it was scored." : cost(scored));
  at("problem").hidden = !state.problem;
  at("problem").textContent = state.problem ?? "";
}

function cost(scored) {
  if (!scored) return "";
  const { usage, timings } = scored;
  const cut = Object.values(scored.rows)
    .flat()
    .some((row) => row.truncated)
    ? " Cut from the left: it was too long."
    : "";
  return `${usage.prompt_tokens + usage.response_tokens} tokens, ${usage.computed_tokens} computed, ${Math.round(timings.device_ms)} ms.${cut}`;
}

function text(name, content, tell) {
  return h("textarea", {
    "aria-label": name,
    rows: 2,
    spellcheck: "false",
    value: content,
    oninput: (event) => tell(event.target.value),
  });
}

function remove(name, work, next) {
  return h(
    "button",
    {
      type: "button",
      class: "slight",
      "aria-label": name,
      onclick: () => {
        work();
        next.focus();
      },
    },
    "Remove",
  );
}
