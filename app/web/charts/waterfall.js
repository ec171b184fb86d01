// The waterfall from the baseline to the reward: one step per concept, or per feature.
// The steps sum to the reward. Below it are the passages of the response that count most, if the model reads any.

import { h, number, showMoreButton, signClass } from "../lib/dom.js";
import { createScale } from "../lib/scale.js";
import { rowsOf } from "../lib/scoring.js";
import { hasChanged } from "../lib/state.js";
import { featureDetails, featureName } from "./feature_details.js";
import { passageParts } from "./passages.js";

const FIRST_STEPS = 12;
const MIN_VISIBLE = 1e-6;

export function waterfallView(store, actions) {
  let shown = FIRST_STEPS;
  let byConcept = null;
  const list = h("ol", { class: "waterfall" });
  const passages = h("div", { class: "passages" });
  const showMore = showMoreButton(() => {
    shown *= 3;
    redraw();
  });
  const grouping = groupingControl("grouping", (value) => {
    byConcept = value;
    shown = FIRST_STEPS;
    redraw();
  });
  const why = h("p", { class: "why" });
  const element = h("div", {}, why, grouping.element, list, showMore, passages);
  const redraw = () => {
    const row = rowsOf(store.state, store.state.model)[store.state.response];
    if (!row || row.error) return [why, list, passages].forEach((part) => part.replaceChildren());
    const isByConcept = byConcept ?? hasConcepts(row);
    grouping.select(isByConcept);
    const parts = isByConcept ? row.concepts : row.features;
    why.textContent = row.why ?? "";
    list.replaceChildren(...waterfallRows(store, waterfallSteps(row, parts, shown), row));
    showMore.hidden = parts.length <= shown;
    passages.replaceChildren(...passageParts(store.state, row));
  };
  const draw = (state, previous) => {
    if (!previous && state.model) actions.loadFeatures(state.model);
    else if (previous && state.model !== previous.model) actions.loadFeatures(state.model);
    if (!previous || hasChanged(state, previous, "scored", "steered", "model", "response")) redraw();
  };
  return { element, draw };
}

// Two options: contributions by concept or by feature. `onSelect` receives whether it is by concept.
export function groupingControl(name, onSelect) {
  const option = (text, value) =>
    h(
      "label",
      { class: "chip" },
      h("input", { type: "radio", name, value, onchange: () => onSelect(value) }),
      h("span", {}, text),
    );
  const element = h(
    "fieldset",
    { class: "chips" },
    h("legend", { class: "visually-hidden" }, "Steps"),
    option("By concept", true),
    option("By feature", false),
  );
  const select = (value) => (element.querySelector(`input[value="${value}"]`).checked = true);
  return { element, select };
}

// Whether any of a reward's contributions, or of a comparison's, belongs to a concept.
export function hasConcepts({ concepts }) {
  return Boolean(concepts?.some(({ name }) => name !== null));
}

// The first `count` parts as steps with their value and start (`from`). The parts that are not shown form one more
// step, so the steps always sum to the reward minus the baseline.
export function waterfallSteps(row, parts, count) {
  const shownParts = parts.slice(0, count);
  const corrections = { length: row.length_correction, penalty: -row.penalty, residual: row.residual };
  const shownSum = shownParts.reduce((sum, part) => sum + part.contribution, 0);
  const correctionSum = Object.values(corrections).reduce((sum, value) => sum + value, 0);
  const remainder = row.reward - row.baseline_reward - shownSum - correctionSum;
  const steps = [
    ...shownParts.map((part) => ({ part, value: part.contribution })),
    ...(parts.length > count || Math.abs(remainder) > MIN_VISIBLE
      ? [{ text: `${parts.length - shownParts.length || "features"} others`, value: remainder }]
      : []),
    ...visibleStep("length control", corrections.length),
    ...visibleStep("uncertainty penalty", corrections.penalty),
    ...visibleStep("rounding", corrections.residual),
  ];
  let from = row.baseline_reward;
  return steps.map((step) => {
    const positioned = { ...step, from };
    from += step.value;
    return positioned;
  });
}

function visibleStep(text, value) {
  return Math.abs(value) > MIN_VISIBLE ? [{ text, value }] : [];
}

function waterfallRows(store, steps, row) {
  const { baseline_reward: baseline, reward, uncertainty } = row;
  const stepEnds = steps.flatMap((step) => [step.from, step.from + step.value]);
  const { position } = createScale([baseline, reward - uncertainty, reward + uncertainty, ...stepEnds]);
  return [
    totalRow("baseline", "the average training response", baseline, position, null),
    ...steps.map((step) => stepRow(store, step, position)),
    totalRow("reward", null, reward, position, uncertainty),
  ];
}

// One step. A step that is a single feature expands to the feature's details.
export function stepRow(store, { part, text, value, from }, position) {
  const track = stepTrack(position, from, from + value, signClass(value));
  const figure = h("span", { class: "figures" }, number(value, 3));
  if (part?.id === undefined)
    return h("li", { class: "step" }, h("span", { class: "name" }, part ? conceptName(part) : text), track, figure);
  const toggle = h(
    "button",
    { type: "button", class: "name", "aria-expanded": "false" },
    featureName(part, store.state.model),
  );
  const row = h("li", { class: "step" }, toggle, track, figure);
  toggle.onclick = () => toggleDetails(toggle, row, () => featureDetails(store, part));
  return row;
}

// Shows or hides the details of a row, directly below it.
export function toggleDetails(button, row, createDetails) {
  const isOpen = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", !isOpen);
  if (isOpen) row.querySelector(".details").remove();
  else row.append(createDetails());
}

function conceptName({ name, features, phrase }) {
  if (name === null) return ["features without a concept", h("small", { class: "muted" }, ` ${features}`)];
  return [name, phrase && h("small", { class: "muted" }, ` “${phrase}”`)];
}

function totalRow(name, description, value, position, uncertainty) {
  const track = stepTrack(position, 0, value, "total-fill");
  if (uncertainty !== null) {
    const ends = { "--from": position(value - uncertainty), "--to": position(value + uncertainty) };
    track.append(h("i", { class: "whisker", cssVars: ends }));
  }
  return h(
    "li",
    { class: "step total" },
    h("span", { class: "name", title: description }, name),
    track,
    h("span", { class: "figures" }, number(value, 3)),
  );
}

function stepTrack(position, from, to, fillClass) {
  const ends = { "--from": position(Math.min(from, to)), "--to": position(Math.max(from, to)) };
  return h(
    "span",
    { class: "track", "aria-hidden": "true" },
    h("i", { class: "zero", cssVars: { "--at": position(0) } }),
    h("i", { class: `fill ${fillClass}`, cssVars: ends }),
    h("i", { class: "connector", cssVars: { "--at": position(to) } }),
  );
}
