// Sliders that scale the contribution of a feature, or of all features of a concept, and the rewards that result.
// Sliders keep their order while results arrive.

import { featureName } from "../charts/feature_details.js";
import { h, number, responseLetter } from "../lib/dom.js";
import { rowsOf } from "../lib/scoring.js";
import { hasChanged } from "../lib/state.js";

const RANGE = { min: -1, max: 3, step: 0.05 };
const OFFERED_NAMES = 4;
const OFFERED_FEATURES = 6;

export function steeringView(store, actions) {
  const sliders = h("ul", { class: "sliders" });
  const outcome = h("ol", { class: "outcome" });
  const addSelect = h("select", {
    "aria-label": "Add a slider",
    onchange: (event) => event.target.value && setFactor(event.target.value, 1),
  });
  const resetButton = h("button", { type: "button", onclick: () => changeFactors(() => ({})) }, "Reset all");
  const element = h(
    "div",
    {},
    h(
      "p",
      { class: "muted small" },
      "A slider multiplies the contribution of a feature, or of all features of a concept: ×1 unchanged, ×0 removed, ×−1 reversed. Hollow marks above show the rewards without steering.",
    ),
    outcome,
    sliders,
    h("div", { class: "actions" }, addSelect, resetButton),
  );
  const changeFactors = (change) => {
    const { model, steer } = store.state;
    store.set({ steer: { ...steer, [model]: change(steer[model] ?? {}) } });
    actions.steer(model);
  };
  const setFactor = (name, factor) => changeFactors((factors) => ({ ...factors, [name]: factor }));
  const draw = (state, previous) => {
    if (!state.scored) return;
    if (
      !previous ||
      hasChanged(state, previous, "model", "response", "features", "scored") ||
      haveSteeredNamesChanged(state, previous)
    ) {
      sliders.replaceChildren(...sliderNames(state).map((name) => slider(state, name, setFactor)));
      addSelect.replaceChildren(...addOptions(state));
    }
    if (!previous || state.model !== previous.model) actions.loadFeatures(state.model);
    if (!previous || hasChanged(state, previous, "model", "scored", "steered"))
      outcome.replaceChildren(...outcomeRows(state));
  };
  return { element, draw };
}

// Whether the set of steered names differs; a changed factor alone does not count.
function haveSteeredNamesChanged({ model, steer }, { steer: previousSteer }) {
  return Object.keys(steer[model] ?? {}).join() !== Object.keys(previousSteer[model] ?? {}).join();
}

// What is steered first, then the concepts and features that contribute most to this reward.
function sliderNames(state) {
  const row = rowsOf(state, state.model)[state.response];
  const names = (row?.concepts ?? [])
    .map((concept) => concept.name)
    .filter(Boolean)
    .slice(0, OFFERED_NAMES);
  const latents = (row?.features ?? []).slice(0, OFFERED_FEATURES).map((feature) => String(feature.id));
  return [...new Set([...Object.keys(state.steer[state.model] ?? {}), ...names, ...latents])];
}

function slider(state, name, setFactor) {
  const factor = state.steer[state.model]?.[name] ?? 1;
  const output = h("output", {}, factorText(factor));
  const input = h("input", { type: "range", ...RANGE, "aria-label": `Factor of ${name}`, value: factor });
  const moveTo = (value) => {
    input.value = value;
    output.textContent = factorText(value);
    setFactor(name, value);
  };
  input.addEventListener("input", () => moveTo(Number(input.value)));
  return h(
    "li",
    {},
    h("span", { class: "name" }, sliderLabel(state, name)),
    input,
    output,
    h(
      "button",
      { type: "button", class: "link-button", "aria-label": `Reset ${name}`, onclick: () => moveTo(1) },
      "Reset",
    ),
  );
}

function factorText(factor) {
  return `×${factor.toFixed(2).replace("-", "−")}`;
}

function sliderLabel(state, name) {
  const row = rowsOf(state, state.model)[state.response];
  const feature = row?.features?.find(({ id }) => String(id) === name);
  if (feature) return featureName(feature, state.model);
  const count = row?.concepts?.find((concept) => concept.name === name)?.features;
  const detail = count ? ` ${count} feature${count > 1 ? "s" : ""}` : " a feature of this model";
  return [name, h("small", { class: "muted" }, detail)];
}

function addOptions(state) {
  const row = rowsOf(state, state.model)[state.response];
  const option = (value, text) => h("option", { value }, text);
  const names = (row?.concepts ?? [])
    .filter((concept) => concept.name)
    .map(({ name, features }) => option(name, `${name} (${features})`));
  const latents = (row?.features ?? []).map(({ id, label }) => option(id, `#${id} ${label ?? ""}`));
  return [
    option("", "Add a slider…"),
    h("optgroup", { label: "Concepts" }, names),
    h("optgroup", { label: "Features, largest contribution first" }, latents),
  ];
}

function outcomeRows(state) {
  const unsteeredRows = state.scored.rows[state.model];
  return rowsOf(state, state.model)
    .filter((row) => !row.error)
    .map((row) => {
      const unsteered = unsteeredRows[row.response];
      return h(
        "li",
        {},
        h("span", { class: "letter" }, responseLetter(row.response)),
        number(unsteered.reward, 3),
        h("span", { class: "muted" }, "→"),
        number(row.reward, 3),
        h("small", { class: "muted" }, "by "),
        number(row.reward - unsteered.reward, 3),
      );
    });
}
