// From the baseline to the reward: what each feature, or all features of a name, moved; the steps sum to it.

import { further, h, number, tone } from "./dom.js";
import { evidence, named } from "./evidence.js";
import { scale } from "./scale.js";
import { rowsOf } from "./scoring.js";
import { changed } from "./state.js";

const FIRST = 12;
const SEEN = 1e-6;

export function waterfall(store, act) {
  let shown = FIRST;
  let byName = false;
  const list = h("ol", { class: "waterfall" });
  const more = further(() => {
    shown *= 3;
    again();
  });
  const either = (text, value) =>
    h(
      "label",
      { class: "chip" },
      h("input", {
        type: "radio",
        name: "grain",
        checked: byName === value,
        onchange: () => {
          byName = value;
          shown = FIRST;
          again();
        },
      }),
      h("span", {}, text),
    );
  const choice = h(
    "fieldset",
    { class: "chips" },
    h("legend", { class: "hidden" }, "Steps"),
    either("By feature", false),
    either("By name", true),
  );
  const element = h("div", {}, choice, list, more);
  const again = () => {
    const row = rowsOf(store.now, store.now.model)[store.now.response];
    if (!row || row.error) return list.replaceChildren();
    const parts = byName ? row.clusters : row.features;
    list.replaceChildren(...rows(store, steps(row, parts, shown), row));
    more.hidden = parts.length <= shown;
  };
  const draw = (state, before) => {
    if (!before && state.model) act.learn(state.model);
    else if (before && state.model !== before.model) act.learn(state.model);
    if (!before || changed(state, before, "scored", "steered", "model", "response")) again();
  };
  return { element, draw };
}

// Each step has a value and the reward before it; what is not shown is one step, so that they always sum.
export function steps(row, parts, count) {
  const shown = parts.slice(0, count);
  const apart = { length: row.length_correction, penalty: -row.penalty, residual: row.residual };
  const told = shown.reduce((sum, one) => sum + one.contribution, 0);
  const extra = Object.values(apart).reduce((sum, one) => sum + one, 0);
  const rest = row.reward - row.baseline_reward - told - extra;
  const found = [
    ...shown.map((part) => ({ part, value: part.contribution })),
    ...(parts.length > count || Math.abs(rest) > SEEN
      ? [{ text: `${parts.length - shown.length || "features"} others`, value: rest }]
      : []),
    ...seen("length control", apart.length),
    ...seen("uncertainty penalty", apart.penalty),
    ...seen("rounding", apart.residual),
  ];
  let from = row.baseline_reward;
  return found.map((one) => {
    const step = { ...one, from };
    from += one.value;
    return step;
  });
}

function seen(text, value) {
  return Math.abs(value) > SEEN ? [{ text, value }] : [];
}

function rows(store, found, row) {
  const { baseline_reward: baseline, reward, uncertainty } = row;
  const ends = found.flatMap((one) => [one.from, one.from + one.value]);
  const { place } = scale([baseline, reward - uncertainty, reward + uncertainty, ...ends]);
  return [
    total("baseline", "the average training response", baseline, place, null),
    ...found.map((one) => step(store, one, place)),
    total("reward", null, reward, place, uncertainty),
  ];
}

// One step; a part that is a feature unfolds its evidence.
export function step(store, { part, text, value, from }, place) {
  const track = trackOf(place, from, from + value, tone(value));
  const figure = h("span", { class: "figures" }, number(value, 3));
  if (!part?.model)
    return h("li", { class: "step" }, h("span", { class: "name" }, part ? cluster(part) : text), track, figure);
  const open = h("button", { type: "button", class: "name", "aria-expanded": "false" }, named(part, store.now.model));
  const item = h("li", { class: "step" }, open, track, figure);
  open.onclick = () => unfold(open, item, () => evidence(store, part));
  return item;
}

// Shows or hides the details of a row, right under it.
export function unfold(button, row, make) {
  const isOpen = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", !isOpen);
  if (isOpen) row.querySelector(".evidence").remove();
  else row.append(make());
}

function cluster({ name, directions }) {
  return [name ?? "without a name", h("small", { class: "quiet" }, ` ${directions}`)];
}

function total(name, about, value, place, uncertainty) {
  const track = trackOf(place, 0, value, "whole");
  if (uncertainty !== null)
    track.append(
      h("i", { class: "whisker", place: { "--from": place(value - uncertainty), "--to": place(value + uncertainty) } }),
    );
  return h(
    "li",
    { class: "step total" },
    h("span", { class: "name", title: about }, name),
    track,
    h("span", { class: "figures" }, number(value, 3)),
  );
}

function trackOf(place, from, to, kind) {
  const ends = { "--from": place(Math.min(from, to)), "--to": place(Math.max(from, to)) };
  return h(
    "span",
    { class: "track", "aria-hidden": "true" },
    h("i", { class: "zero", place: { "--at": place(0) } }),
    h("i", { class: `fill ${kind}`, place: ends }),
    h("i", { class: "link", place: { "--at": place(to) } }),
  );
}
