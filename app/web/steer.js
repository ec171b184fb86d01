// Sliders: let more or less of a feature, or of all features of a name, through, and see what becomes of the
// rewards. Sliders stay in place while answers come in.

import { h, letter, number } from "./dom.js";
import { named } from "./evidence.js";
import { rowsOf } from "./scoring.js";
import { changed } from "./state.js";

const RANGE = { min: -1, max: 3, step: 0.05 };
const NAMES = 4;
const FEATURES = 6;

export function steer(store, act) {
  const sliders = h("ul", { class: "sliders" });
  const outcome = h("ol", { class: "outcome" });
  const more = h("select", {
    "aria-label": "Add a slider",
    onchange: (event) => event.target.value && set(event.target.value, 1),
  });
  const reset = h("button", { type: "button", onclick: () => change(() => ({})) }, "Reset all");
  const element = h(
    "div",
    {},
    h(
      "p",
      { class: "quiet small" },
      "How far a feature, or all features of a name, may move the reward from the baseline: ×1 as it does, ×0 not at all, ×−1 the other way. Hollow marks above show where the rewards stood.",
    ),
    outcome,
    sliders,
    h("div", { class: "actions" }, more, reset),
  );
  const change = (work) => {
    const { model, steer: all } = store.now;
    store.set({ steer: { ...all, [model]: work(all[model] ?? {}) } });
    act.steer(model);
  };
  const set = (name, factor) => change((mine) => ({ ...mine, [name]: factor }));
  const draw = (state, before) => {
    if (!state.scored) return;
    if (!before || changed(state, before, "model", "response", "features", "scored") || isRegrouped(state, before)) {
      sliders.replaceChildren(...offered(state).map((name) => slider(state, name, set)));
      more.replaceChildren(...choices(state));
    }
    if (!before || state.model !== before.model) act.learn(state.model);
    if (!before || changed(state, before, "model", "scored", "steered")) outcome.replaceChildren(...outcomes(state));
  };
  return { element, draw };
}

// Whether other things are steered than before, and not only otherwise.
function isRegrouped({ model, steer: now }, { steer: before }) {
  return Object.keys(now[model] ?? {}).join() !== Object.keys(before[model] ?? {}).join();
}

// What has been moved, then what moves this reward most.
function offered(state) {
  const row = rowsOf(state, state.model)[state.response];
  const names = (row?.clusters ?? [])
    .map((one) => one.name)
    .filter(Boolean)
    .slice(0, NAMES);
  const latents = (row?.features ?? []).slice(0, FEATURES).map((one) => String(one.id));
  return [...new Set([...Object.keys(state.steer[state.model] ?? {}), ...names, ...latents])];
}

function slider(state, name, set) {
  const factor = state.steer[state.model]?.[name] ?? 1;
  const said = h("output", {}, shown(factor));
  const input = h("input", { type: "range", ...RANGE, "aria-label": `Factor of ${name}`, value: factor });
  const move = (value) => {
    input.value = value;
    said.textContent = shown(value);
    set(name, value);
  };
  input.addEventListener("input", () => move(Number(input.value)));
  return h(
    "li",
    {},
    h("span", { class: "name" }, nameOf(state, name)),
    input,
    said,
    h(
      "button",
      { type: "button", class: "slight", "aria-label": `Leave ${name} as it is`, onclick: () => move(1) },
      "Reset",
    ),
  );
}

function shown(factor) {
  return `×${factor.toFixed(2).replace("-", "−")}`;
}

function nameOf(state, name) {
  const row = rowsOf(state, state.model)[state.response];
  const found = row?.features?.find((one) => String(one.id) === name);
  if (found) return named(found, state.model);
  const many = row?.clusters?.find((one) => one.name === name)?.directions;
  return [name, h("small", { class: "quiet" }, many ? ` ${many} feature${many > 1 ? "s" : ""}` : " one of this model")];
}

function choices(state) {
  const row = rowsOf(state, state.model)[state.response];
  const option = (value, text) => h("option", { value }, text);
  const names = (row?.clusters ?? [])
    .filter((one) => one.name)
    .map((one) => option(one.name, `${one.name} (${one.directions})`));
  const latents = (row?.features ?? []).map((one) => option(one.id, `#${one.id} ${one.label ?? ""}`));
  return [
    option("", "Add a slider…"),
    h("optgroup", { label: "Names" }, names),
    h("optgroup", { label: "Features, largest share first" }, latents),
  ];
}

function outcomes(state) {
  const before = state.scored.rows[state.model];
  return rowsOf(state, state.model)
    .filter((row) => !row.error)
    .map((row) => {
      const was = before[row.response];
      return h(
        "li",
        {},
        h("span", { class: "letter" }, letter(row.response)),
        number(was.reward, 3),
        h("span", { class: "quiet" }, "→"),
        number(row.reward, 3),
        h("small", { class: "quiet" }, "by "),
        number(row.reward - was.reward, 3),
      );
    });
}
