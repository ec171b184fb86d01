// What made one response beat another: each feature's share of the margin, for the first or for the second.

import { further, h, letter, number, signed } from "./dom.js";
import { scale } from "./scale.js";
import { changed, rivalOf } from "./state.js";
import { step, steps } from "./waterfall.js";

const FIRST = 14;

export function contrast(store, act) {
  let shown = FIRST;
  const first = select("First response", (value) => store.set({ response: value }));
  const second = select("Second response", (value) => store.set({ rival: value }));
  const body = h("div");
  const more = further(() => {
    shown *= 3;
    again();
  });
  const controls = h("div", { class: "versus" }, first, h("span", { class: "quiet" }, "against"), second);
  const element = h("div", { class: "contrast" }, controls, body, more);
  const again = () => {
    const { comparison, model, response } = store.now;
    const isNew =
      comparison?.model === model && comparison.response === response && comparison.rival === rivalOf(store.now);
    body.replaceChildren(...(isNew ? drawn(store, comparison, shown) : waiting(store.now)));
    more.hidden = !isNew || Boolean(comparison.found.error) || comparison.found.features.length <= shown;
  };
  const draw = (state, before) => {
    const count = state.scored?.responses.length ?? 0;
    controls.hidden = more.hidden = count < 2;
    if (count < 2) return body.replaceChildren(h("p", { class: "quiet" }, "Add a second response and score again."));
    if (!before || changed(state, before, "scored", "response", "rival", "model")) {
      fill(first, state.scored.responses, state.response);
      fill(second, state.scored.responses, rivalOf(state));
      act.learn(state.model);
      act.compare();
    }
    again();
  };
  return { element, draw };
}

function waiting({ problem }) {
  return [h("p", { class: problem ? "problem" : "quiet" }, problem ?? "Comparing…")];
}

function drawn(store, { model, response, rival, found }, shown) {
  if (found.error) return [h("p", { class: "problem" }, found.error.message)];
  const [a, b] = [letter(response), letter(rival)];
  const parts = steps({ ...found, baseline_reward: 0, reward: found.margin }, found.features, shown).map((one) => ({
    ...one,
    from: 0,
  }));
  const { place } = scale([...parts.map((one) => one.value), ...parts.map((one) => -one.value)]);
  const steered = Object.values(store.now.steer[model] ?? {}).some((factor) => factor !== 1);
  return [
    h("p", { class: "verdict" }, verdict(found, a, b)),
    h("p", { class: "quiet small" }, "The shares below sum to the margin.", steered && " Steering is left out here."),
    h(
      "div",
      { class: "sides", "aria-hidden": "true" },
      h("span", { class: "minus" }, `← for ${b}`),
      h("span", { class: "plus" }, `for ${a} →`),
    ),
    h(
      "ol",
      { class: "waterfall flat" },
      parts.map((one) => step(store, one, place)),
    ),
  ];
}

function verdict({ margin, probability, uncertainty, chosen_reward: one, rejected_reward: other }, a, b) {
  const said = [
    `${a} is ${margin < 0 ? "behind" : "ahead of"} ${b} by `,
    number(margin),
    ` ±${uncertainty.toFixed(2)} (${signed(one)} against ${signed(other)})`,
  ];
  if (probability === null) return [...said, "."];
  return [
    ...said,
    `; people would prefer ${a} with probability `,
    h("data", { value: String(probability) }, probability.toFixed(2)),
    ".",
  ];
}

function select(name, choose) {
  return h("select", { "aria-label": name, onchange: (event) => choose(Number(event.target.value)) });
}

function fill(element, responses, chosen) {
  element.replaceChildren(
    ...responses.map((text, i) =>
      h("option", { value: i, selected: i === chosen }, `${letter(i)}: ${text.slice(0, 40)}`),
    ),
  );
}
