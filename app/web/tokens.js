// What every token added to the reward of the text before it: the running reward, and the text in its colours.

import { h, letter, number, signed, svg, tone } from "./dom.js";
import { scale } from "./scale.js";
import { rowsOf } from "./scoring.js";
import { changed } from "./state.js";

const LEVELS = 5;
const UNFOLDED = 1500;
const HEIGHT = 60;

export function tokens(store, act) {
  const element = h("div", { class: "tokens" });
  let unfolded = new Set();
  const ask = ({ credits, model, scored }) => {
    const known = credits?.model === model ? credits.rows : {};
    const missing = [...unfolded].filter((response) => response < scored.responses.length && !known[response]);
    if (missing.length) act.credit(missing);
  };
  const toggle = (response, isOpen) => {
    if (unfolded.has(response) === isOpen) return;
    isOpen ? unfolded.add(response) : unfolded.delete(response);
    ask(store.now);
  };
  const made = new Map();
  // Thousands of spans are made again only if something about them is new.
  const kept = (...given) => {
    const { response } = given[0];
    const was = made.get(response);
    const isSame = was?.given.every((one, i) => one === given[i]);
    const element = isSame ? was.element : folded(...given, unfolded.has(response), toggle);
    element.open = unfolded.has(response);
    made.set(response, { given, element });
    return element;
  };
  const draw = (state, before) => {
    if (!state.scored) return;
    const isNew = !before || changed(state, before, "model", "scored", "steered");
    if (isNew || state.response !== before.response) {
      unfolded = isNew ? atFirst(state) : unfolded.add(state.response);
      ask(state);
    }
    if (isNew || changed(state, before, "credits", "response")) element.replaceChildren(...drawn(state, kept));
  };
  return { element, draw };
}

// Every response where that costs little, else the chosen one; others are asked about when they are unfolded.
function atFirst(state) {
  const rows = rowsOf(state, state.model).filter((row) => !row.error);
  const isShort = rows.reduce((sum, row) => sum + row.response_tokens, 0) < UNFOLDED;
  return new Set(rows.map((row) => row.response).filter((response) => isShort || response === state.response));
}

function drawn(state, make) {
  const rows = rowsOf(state, state.model).filter((row) => !row.error);
  const known = state.credits?.model === state.model ? state.credits.rows : {};
  const all = Object.values(known).flatMap((row) => row.tokens ?? []);
  const most = all.reduce((found, one) => Math.max(found, Math.abs(one.credit)), 1e-9);
  return [legend(most), ...rows.map((row) => make(row, known[row.response], most))];
}

function folded(row, credited, most, isOpen, toggle) {
  const summary = h(
    "summary",
    {},
    h("span", { class: "letter" }, letter(row.response)),
    " ",
    number(row.reward),
    ` in ${row.response_tokens} tokens`,
  );
  const body = () =>
    credited?.tokens ? text(credited, most) : [h("p", { class: "quiet small" }, "Reading token by token…")];
  const element = h("details", { open: isOpen }, summary, isOpen && body());
  element.addEventListener("toggle", () => {
    if (element.open && element.childElementCount === 1) element.append(...body());
    toggle(row.response, element.open);
  });
  return element;
}

function legend(most) {
  const keys = Array.from({ length: 2 * LEVELS + 1 }, (_, i) => h("i", { class: `token ${level(i - LEVELS)}` }));
  return h(
    "p",
    { class: "legend quiet small" },
    number(-most),
    h("span", { class: "ramp", "aria-hidden": "true" }, keys),
    number(most),
    h("span", {}, "what a token added; colours go by the square root"),
  );
}

function text(row, most) {
  const said = h("p", { class: "quiet small said", role: "status" }, "Point at a token, or walk with the arrow keys.");
  const running = sums(row);
  const spans = row.tokens.map(({ text, credit }) =>
    h(
      "span",
      { class: `token ${level(Math.sign(credit) * Math.round(LEVELS * Math.sqrt(Math.abs(credit) / most)))}` },
      text,
    ),
  );
  const { chart, point } = line(row, running);
  let here = -1;
  const go = (i) => {
    if (i < 0 || i >= spans.length || i === here) return;
    spans[here]?.classList.remove("here");
    spans[i].classList.add("here");
    here = i;
    point(i);
    said.replaceChildren(
      `“${row.tokens[i].text}” `,
      number(row.tokens[i].credit, 3),
      `, reward so far ${signed(running[i], 3)}`,
    );
  };
  const places = new Map(spans.map((span, i) => [span, i]));
  const body = h(
    "div",
    {
      class: "said-text",
      tabindex: 0,
      role: "group",
      "aria-label": `Response ${letter(row.response)}, token by token`,
      onpointerover: (event) => places.has(event.target) && go(places.get(event.target)),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        go(Math.max(here + step, 0));
      },
    },
    spans,
  );
  return [chart, body, said];
}

// The reward after each token, from the baseline on; length control is not earned by any token.
export function sums({ tokens: list, baseline_reward: baseline }) {
  let sum = baseline;
  return list.map(({ credit }) => (sum += credit));
}

function line(row, running) {
  const { place } = scale([row.baseline_reward, ...running]);
  const y = (value) => HEIGHT * (1 - parseFloat(place(value)) / 100);
  const points = [row.baseline_reward, ...running].map((value, i) => `${i},${y(value)}`).join(" ");
  const cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, x1: -9, x2: -9 });
  const chart = svg(
    "svg",
    {
      class: "running",
      viewBox: `0 0 ${running.length} ${HEIGHT}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    svg("line", { class: "zero", x1: 0, x2: running.length, y1: y(0), y2: y(0) }),
    svg("polyline", { class: tone(row.reward), points }),
    cursor,
  );
  const point = (i) => {
    cursor.setAttribute("x1", i + 1);
    cursor.setAttribute("x2", i + 1);
  };
  const zero = h(
    "span",
    { class: "level", "aria-hidden": "true", place: { "--at": `${(100 * y(0)) / HEIGHT}%` } },
    "0",
  );
  const labelled = h(
    "figure",
    {},
    h("div", { class: "path" }, chart, zero),
    h(
      "figcaption",
      { class: "quiet small" },
      "The reward so far, from the baseline ",
      number(row.baseline_reward),
      " on",
    ),
  );
  return { chart: labelled, point };
}

function level(n) {
  return n === 0 ? "" : `${n < 0 ? "minus" : "plus"}-${Math.min(Math.abs(n), LEVELS)}`;
}
