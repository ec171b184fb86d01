// The rewards: a bar for each response under each model, on one axis, with the heads' disagreement and the rank
// among training responses. A hollow mark is where a reward stood before it was steered.

import { at, h, letter, number, tone } from "./dom.js";
import { scale } from "./scale.js";
import { rowsOf } from "./scoring.js";
import { changed } from "./state.js";

const STRANGE = 95;
const SUFFIXES = { one: "st", two: "nd", few: "rd", other: "th" };
const kinds = new Intl.PluralRules("en", { type: "ordinal" });

export function rewards(store) {
  const draw = (state, before) => {
    if (!state.scored) return;
    if (!before || changed(state, before, "scored", "steered")) {
      const { place, ticks } = scale(state.scored.models.flatMap((model) => reach(state, model)));
      at("chart").replaceChildren(...state.scored.models.map((model) => block(store, model, place, ticks)));
    }
    for (const one of at("chart").querySelectorAll("button")) {
      const isChosen = one.dataset.model === state.model && Number(one.dataset.response) === state.response;
      one.setAttribute("aria-pressed", isChosen);
    }
  };
  store.watch(draw);
  draw(store.now, null);
}

function ordinal(percentile) {
  const rank = Math.min(Math.max(Math.round(percentile), 1), 99);
  return `${rank}${SUFFIXES[kinds.select(rank)]}`;
}

function reach(state, model) {
  const rows = [...rowsOf(state, model), ...state.scored.rows[model]].filter((row) => !row.error);
  return rows.flatMap((row) => [row.reward - row.uncertainty, row.reward + row.uncertainty]);
}

function block(store, model, place, ticks) {
  const state = store.now;
  const card = state.cards.find((one) => one.id === model.split("@")[0]);
  return h(
    "section",
    { class: "model", "aria-label": model },
    h("div", { class: "titled" }, h("h3", {}, model), quality(card)),
    h(
      "div",
      { class: "bars" },
      rowsOf(state, model).map((row, response) =>
        bar(row, place, state.steered[model] && state.scored.rows[model][response], {
          "data-model": model,
          "data-response": response,
          onclick: () => store.set({ model, response }),
        }),
      ),
      axis(place, ticks),
    ),
  );
}

function quality(card) {
  const { accuracy, ci_low: low, ci_high: high, n } = card?.metrics ?? {};
  const percent = (share) => (100 * share).toFixed(0);
  if (!accuracy) return card?.composite?.about && h("p", { class: "quiet" }, card.composite.about);
  return h(
    "p",
    { class: "quiet", title: "on how many test pairs of unseen prompts it agrees with people, with a 95 % interval" },
    `accuracy ${percent(accuracy)} % (${percent(low)} to ${percent(high)}), n = ${n}`,
  );
}

function bar(row, place, before, given) {
  const name = h("span", { class: "letter" }, letter(row.response));
  if (row.error)
    return h(
      "button",
      { type: "button", class: "row", ...given },
      name,
      h("span", { class: "minus" }, row.error.message),
    );
  const { reward, uncertainty, percentile, distance } = row;
  const ends = { "--from": place(Math.min(0, reward)), "--to": place(Math.max(0, reward)) };
  const whisker = { "--from": place(reward - uncertainty), "--to": place(reward + uncertainty) };
  const isStrange = distance > STRANGE;
  return h(
    "button",
    { type: "button", class: "row", ...given },
    name,
    h(
      "span",
      { class: "track", "aria-hidden": "true" },
      h("i", { class: "zero", place: { "--at": place(0) } }),
      h("i", { class: `fill ${tone(reward)}`, place: ends }),
      h("i", { class: "whisker", place: whisker }),
      before && h("i", { class: "ghost", place: { "--at": place(before.reward) } }),
    ),
    h(
      "span",
      { class: "figures" },
      h("span", { class: "hidden" }, "reward "),
      number(reward),
      h("small", { class: "quiet", title: `uncertainty ${uncertainty}` }, ` ±${uncertainty.toFixed(2)}`),
    ),
    h(
      "span",
      { class: "rank" },
      percentile === null
        ? h("small", { class: "quiet" }, "no rank")
        : h("small", { title: `percentile ${percentile} of held-out training responses` }, ordinal(percentile)),
      isStrange &&
        h(
          "small",
          {
            class: "tag",
            title: `Further from the training data than ${distance.toFixed(1)} % of held-out responses: the reward means little.`,
          },
          "strange",
        ),
    ),
  );
}

function axis(place, ticks) {
  return h(
    "div",
    { class: "row axis", "aria-hidden": "true" },
    h("span"),
    h(
      "span",
      { class: "track" },
      ticks.map((tick) => h("i", { class: "tick", place: { "--at": place(tick) } }, String(tick).replace("-", "−"))),
    ),
    h("span"),
    h("span"),
  );
}
