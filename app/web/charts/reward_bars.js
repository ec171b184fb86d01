// A bar for each response under each model, on one common axis, with uncertainty and rank. A hollow mark shows the
// reward before steering.

import { byId, h, number, responseLetter, signClass } from "../lib/dom.js";
import { createScale } from "../lib/scale.js";
import { modelCard, rowsOf } from "../lib/scoring.js";
import { hasChanged } from "../lib/state.js";

const OUT_OF_DISTRIBUTION_PERCENTILE = 95;
const ORDINAL_SUFFIXES = { one: "st", two: "nd", few: "rd", other: "th" };
const ordinalRules = new Intl.PluralRules("en", { type: "ordinal" });

export function renderRewardBars(store) {
  const draw = (state, previous) => {
    if (!state.scored) return;
    if (!previous || hasChanged(state, previous, "scored", "steered")) {
      const { position, ticks } = createScale(state.scored.models.flatMap((model) => valueRange(state, model)));
      byId("chart").replaceChildren(...state.scored.models.map((model) => modelBlock(store, model, position, ticks)));
    }
    for (const button of byId("chart").querySelectorAll("button")) {
      const isSelected = button.dataset.model === state.model && Number(button.dataset.response) === state.response;
      button.setAttribute("aria-pressed", isSelected);
    }
  };
  store.subscribe(draw);
  draw(store.state, null);
}

function ordinal(percentile) {
  const rank = Math.min(Math.max(Math.round(percentile), 1), 99);
  return `${rank}${ORDINAL_SUFFIXES[ordinalRules.select(rank)]}`;
}

function valueRange(state, model) {
  const rows = [...rowsOf(state, model), ...state.scored.rows[model]].filter((row) => !row.error);
  return rows.flatMap((row) => [row.reward - row.uncertainty, row.reward + row.uncertainty]);
}

function modelBlock(store, model, position, ticks) {
  const { state } = store;
  return h(
    "section",
    { class: "model", "aria-label": model },
    h("div", { class: "title-row" }, h("h3", {}, model), accuracyText(modelCard(state, model))),
    h(
      "div",
      { class: "bars" },
      rowsOf(state, model).map((row, response) =>
        barRow(row, position, state.steered[model] && state.scored.rows[model][response], {
          "data-model": model,
          "data-response": response,
          onclick: () => store.set({ model, response }),
        }),
      ),
      axisRow(position, ticks),
    ),
  );
}

function accuracyText(card) {
  const { accuracy, ci_low: low, ci_high: high, n } = card?.metrics ?? {};
  const percent = (share) => (100 * share).toFixed(0);
  if (!accuracy) return card?.composite?.about && h("p", { class: "muted" }, card.composite.about);
  return h(
    "p",
    { class: "muted", title: "Agreement with human preferences on test pairs of unseen prompts, with a 95 % interval" },
    `accuracy ${percent(accuracy)} % (${percent(low)} to ${percent(high)}), n = ${n}`,
  );
}

function barRow(row, position, unsteeredRow, attributes) {
  const letter = h("span", { class: "letter" }, responseLetter(row.response));
  if (row.error)
    return h(
      "button",
      { type: "button", class: "row", ...attributes },
      letter,
      h("span", { class: "minus" }, row.error.message),
    );
  return h(
    "button",
    { type: "button", class: "row", ...attributes },
    letter,
    barTrack(row, position, unsteeredRow),
    h(
      "span",
      { class: "figures" },
      h("span", { class: "visually-hidden" }, "reward "),
      number(row.reward),
      h("small", { class: "muted", title: `uncertainty ${row.uncertainty}` }, ` ±${row.uncertainty.toFixed(2)}`),
    ),
    rankCell(row),
  );
}

function barTrack({ reward, uncertainty }, position, unsteeredRow) {
  const barEnds = { "--from": position(Math.min(0, reward)), "--to": position(Math.max(0, reward)) };
  const whiskerEnds = { "--from": position(reward - uncertainty), "--to": position(reward + uncertainty) };
  return h(
    "span",
    { class: "track", "aria-hidden": "true" },
    h("i", { class: "zero", cssVars: { "--at": position(0) } }),
    h("i", { class: `fill ${signClass(reward)}`, cssVars: barEnds }),
    h("i", { class: "whisker", cssVars: whiskerEnds }),
    unsteeredRow && h("i", { class: "unsteered", cssVars: { "--at": position(unsteeredRow.reward) } }),
  );
}

function rankCell({ percentile, distance }) {
  return h(
    "span",
    { class: "rank" },
    percentile === null
      ? h("small", { class: "muted" }, "no rank")
      : h("small", { title: `percentile ${percentile} of held-out training responses` }, ordinal(percentile)),
    distance > OUT_OF_DISTRIBUTION_PERCENTILE &&
      h(
        "small",
        {
          class: "tag",
          title: `Out of distribution: further from the training data than ${distance.toFixed(1)} % of held-out responses, so the reward is unreliable.`,
        },
        "OOD",
      ),
  );
}

function axisRow(position, ticks) {
  return h(
    "div",
    { class: "row axis", "aria-hidden": "true" },
    h("span"),
    h(
      "span",
      { class: "track" },
      ticks.map((tick) =>
        h("i", { class: "tick", cssVars: { "--at": position(tick) } }, String(tick).replace("-", "−")),
      ),
    ),
    h("span"),
    h("span"),
  );
}
