// Compares two responses: the margin, and each concept's contribution to it.

import { groupingControl, hasConcepts, stepRow, waterfallSteps } from "../charts/waterfall.js";
import { h, number, responseLetter, showMoreButton, signed } from "../lib/dom.js";
import { createScale } from "../lib/scale.js";
import { hasChanged, rivalOf } from "../lib/state.js";
import { tokenSpan } from "./token_credits.js";

const FIRST_STEPS = 14;

export function contrastView(store, actions) {
  let shown = FIRST_STEPS;
  let byConcept = null;
  const grouping = groupingControl("contrast-grouping", (value) => {
    byConcept = value;
    redraw();
  });
  const partsOf = (result) => ((byConcept ?? hasConcepts(result)) ? result.concepts : result.features);
  const firstSelect = responseSelect("First response", (value) => store.set({ response: value }));
  const secondSelect = responseSelect("Second response", (value) => store.set({ rival: value }));
  const body = h("div");
  const showMore = showMoreButton(() => {
    shown *= 3;
    redraw();
  });
  const controls = h("div", { class: "versus" }, firstSelect, h("span", { class: "muted" }, "vs."), secondSelect);
  const element = h("div", { class: "contrast" }, controls, grouping.element, body, showMore);
  const redraw = () => {
    const { comparison } = store.state;
    const isCurrent = isComparisonCurrent(store.state);
    body.replaceChildren(...(isCurrent ? comparisonParts(store, comparison, partsOf, shown) : pendingParts(store.state)));
    grouping.element.hidden = !isCurrent || Boolean(comparison.result.error);
    if (!grouping.element.hidden) grouping.select(byConcept ?? hasConcepts(comparison.result));
    const isComplete = grouping.element.hidden || partsOf(comparison.result).length <= shown;
    showMore.hidden = isComplete;
  };
  const draw = (state, previous) => {
    const count = state.scored?.responses.length ?? 0;
    controls.hidden = grouping.element.hidden = showMore.hidden = count < 2;
    if (count < 2) return body.replaceChildren(h("p", { class: "muted" }, "Add a second response and score again."));
    if (!previous || hasChanged(state, previous, "scored", "response", "rival", "model")) {
      fillOptions(firstSelect, state.scored.responses, state.response);
      fillOptions(secondSelect, state.scored.responses, rivalOf(state));
      actions.loadFeatures(state.model);
      actions.compare();
    }
    redraw();
  };
  return { element, draw };
}

function isComparisonCurrent({ comparison, model, response, rival }) {
  return (
    comparison?.model === model && comparison.response === response && comparison.rival === rivalOf({ response, rival })
  );
}

function pendingParts({ problem }) {
  return [h("p", { class: problem ? "problem" : "muted" }, problem ?? "Comparing…")];
}

function comparisonParts(store, { model, response, rival, result }, partsOf, shown) {
  if (result.error) return [h("p", { class: "problem" }, result.error.message)];
  const [first, second] = [responseLetter(response), responseLetter(rival)];
  const margin = { ...result, baseline_reward: 0, reward: result.margin };
  const steps = waterfallSteps(margin, partsOf(result), shown).map((step) => ({ ...step, from: 0 }));
  const { position } = createScale(steps.flatMap(({ value }) => [value, -value]));
  const isSteered = Object.values(store.state.steer[model] ?? {}).some((factor) => factor !== 1);
  return [
    h("p", { class: "verdict" }, verdictText(result, first, second)),
    h("p", { class: "why" }, renameSides(result.why ?? "", first, second)),
    ...shadedTexts(result, first, second),
    h(
      "p",
      { class: "muted small" },
      "The contributions below sum to the margin.",
      isSteered && " Steering is not applied here.",
    ),
    h(
      "div",
      { class: "sides", "aria-hidden": "true" },
      h("span", { class: "minus" }, `← for ${second}`),
      h("span", { class: "plus" }, `for ${first} →`),
    ),
    h(
      "ol",
      { class: "waterfall flat" },
      steps.map((step) => stepRow(store, step, position)),
    ),
  ];
}

// Both texts, coloured by what each token adds for the first response or, in the other colour, for the second.
function shadedTexts({ chosen_tokens: chosen, rejected_tokens: rejected }, first, second) {
  if (!chosen || !rejected) return [];
  const maxCredit = [...chosen, ...rejected].reduce((max, { credit }) => Math.max(max, Math.abs(credit)), 1e-9);
  return [
    [first, chosen],
    [second, rejected],
  ].map(([letter, tokens]) =>
    h(
      "p",
      { class: "shaded" },
      h("span", { class: "letter" }, letter),
      " ",
      tokens.map((token) => tokenSpan(token, maxCredit)),
    ),
  );
}

// The server calls the two responses A and B; here they have the letters of the page.
function renameSides(why, first, second) {
  const letters = { A: first, B: second };
  return why.replace(/“[^”]*”|\b[AB]\b/g, (match) => letters[match] ?? match);
}

function verdictText(result, first, second) {
  const { margin, probability, uncertainty, chosen_reward: firstReward, rejected_reward: secondReward } = result;
  const parts = [
    `${first} is ${margin < 0 ? "behind" : "ahead of"} ${second} by `,
    number(margin),
    ` ±${uncertainty.toFixed(2)} (${signed(firstReward)} against ${signed(secondReward)})`,
  ];
  if (probability === null) return [...parts, "."];
  return [
    ...parts,
    `; people prefer ${first} with probability `,
    h("data", { value: String(probability) }, probability.toFixed(2)),
    ".",
  ];
}

function responseSelect(label, onSelect) {
  return h("select", { "aria-label": label, onchange: (event) => onSelect(Number(event.target.value)) });
}

function fillOptions(select, responses, selected) {
  select.replaceChildren(
    ...responses.map((text, i) =>
      h("option", { value: i, selected: i === selected }, `${responseLetter(i)}: ${text.slice(0, 40)}`),
    ),
  );
}
