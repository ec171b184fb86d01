// Token credits: the text coloured by the share of each token in the reward.

import { h, number, responseLetter } from "../lib/dom.js";
import { rowsOf } from "../lib/scoring.js";
import { hasChanged } from "../lib/state.js";

const COLOUR_LEVELS = 5;
// Up to this total of response tokens, all responses are requested at once.
const MAX_TOKENS_OPEN_AT_ONCE = 1500;

export function tokenCreditsView(store, actions) {
  const element = h("div", { class: "tokens" });
  let openResponses = new Set();
  const requestMissing = ({ credits, model, scored }) => {
    const known = credits?.model === model ? credits.rows : {};
    const missing = [...openResponses].filter((response) => response < scored.responses.length && !known[response]);
    if (missing.length) actions.credit(missing);
  };
  const toggle = (response, isOpen) => {
    if (openResponses.has(response) === isOpen) return;
    isOpen ? openResponses.add(response) : openResponses.delete(response);
    requestMissing(store.state);
  };
  const createSection = cachedByResponse((...args) => {
    const [{ response }] = args;
    return responseSection(...args, openResponses.has(response), toggle);
  });
  const section = (...args) => {
    const details = createSection(...args);
    details.open = openResponses.has(args[0].response);
    return details;
  };
  const draw = (state, previous) => {
    if (!state.scored) return;
    const isNew = !previous || hasChanged(state, previous, "model", "scored", "steered");
    if (isNew || state.response !== previous.response) {
      openResponses = isNew ? initiallyOpen(state) : openResponses.add(state.response);
      requestMissing(state);
    }
    if (isNew || hasChanged(state, previous, "credits", "response"))
      element.replaceChildren(...sections(state, section));
  };
  return { element, draw };
}

// Caches the last element of each response while its arguments stay the same: a response has thousands of spans.
function cachedByResponse(create) {
  const cache = new Map();
  return (...args) => {
    const { response } = args[0];
    const cached = cache.get(response);
    if (cached?.args.every((value, i) => value === args[i])) return cached.element;
    const element = create(...args);
    cache.set(response, { args, element });
    return element;
  };
}

// All responses if they are short together, else the selected one. The others are requested when they are opened.
function initiallyOpen(state) {
  const rows = rowsOf(state, state.model).filter((row) => !row.error);
  const areShort = rows.reduce((sum, row) => sum + row.response_tokens, 0) < MAX_TOKENS_OPEN_AT_ONCE;
  return new Set(rows.map((row) => row.response).filter((response) => areShort || response === state.response));
}

function sections(state, createSection) {
  const rows = rowsOf(state, state.model).filter((row) => !row.error);
  const known = state.credits?.model === state.model ? state.credits.rows : {};
  const tokens = Object.values(known).flatMap((row) => row.tokens ?? []);
  const maxCredit = tokens.reduce((max, { credit }) => Math.max(max, Math.abs(credit)), 1e-9);
  return [legend(maxCredit), ...rows.map((row) => createSection(row, known[row.response], maxCredit))];
}

function responseSection(row, creditRow, maxCredit, isOpen, toggle) {
  const summary = h(
    "summary",
    {},
    h("span", { class: "letter" }, responseLetter(row.response)),
    " ",
    number(row.reward),
    ` in ${row.response_tokens} tokens`,
  );
  const body = () =>
    creditRow?.tokens
      ? creditedText(creditRow, maxCredit)
      : [h("p", { class: "muted small" }, "Computing token credits…")];
  const element = h("details", { open: isOpen }, summary, isOpen && body());
  element.addEventListener("toggle", () => {
    if (element.open && element.childElementCount === 1) element.append(...body());
    toggle(row.response, element.open);
  });
  return element;
}

function legend(maxCredit) {
  const swatches = Array.from({ length: 2 * COLOUR_LEVELS + 1 }, (_, i) =>
    h("i", { class: `token ${levelClass(i - COLOUR_LEVELS)}` }),
  );
  return h(
    "p",
    { class: "legend muted small" },
    number(-maxCredit),
    h("span", { class: "ramp", "aria-hidden": "true" }, swatches),
    number(maxCredit),
    h("span", {}, "credit of a token; the colour follows its square root"),
  );
}

// The text as one focusable group: pointing at a token or pressing an arrow key selects it.
function creditedText(row, maxCredit) {
  const readout = h(
    "p",
    { class: "muted small readout", role: "status" },
    "Point at a token, or use the arrow keys to move through them.",
  );
  const spans = row.tokens.map((token) => tokenSpan(token, maxCredit));
  let selected = -1;
  const select = (i) => {
    if (i < 0 || i >= spans.length || i === selected) return;
    spans[selected]?.classList.remove("selected");
    spans[i].classList.add("selected");
    selected = i;
    readout.replaceChildren(`“${row.tokens[i].text}” `, number(row.tokens[i].credit, 3));
  };
  const indexOfSpan = new Map(spans.map((span, i) => [span, i]));
  const body = h(
    "div",
    {
      class: "token-text",
      tabindex: 0,
      role: "group",
      "aria-label": `Response ${responseLetter(row.response)}, token by token`,
      onpointerover: (event) => indexOfSpan.has(event.target) && select(indexOfSpan.get(event.target)),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        select(Math.max(selected + step, 0));
      },
    },
    spans,
  );
  return [body, readout];
}

// One token, coloured by its credit: the text of a response is a list of them.
export function tokenSpan({ text, credit }, maxCredit) {
  const level = Math.sign(credit) * Math.round(COLOUR_LEVELS * Math.sqrt(Math.abs(credit) / maxCredit));
  return h("span", { class: `token ${levelClass(level)}` }, text);
}

function levelClass(level) {
  return level === 0 ? "" : `${level < 0 ? "minus" : "plus"}-${Math.min(Math.abs(level), COLOUR_LEVELS)}`;
}
