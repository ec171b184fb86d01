// What is known of one feature: its name and how well that holds, how it was chosen, how its projections spread
// over training responses, and where the responses on this page fall.

import { h, letter, number, signed } from "./dom.js";
import { cardOf, rowsOf } from "./scoring.js";
import { spread, tenth } from "./spread.js";

// A feature by name if it has one; its number tells it from others of the same name.
export function named(feature, model) {
  const whose = feature.model === model ? "" : `${feature.model} `;
  return feature.label
    ? [feature.label, h("small", { class: "quiet" }, ` ${whose}#${feature.id}`)]
    : [h("span", { class: "quiet" }, `${whose}#${feature.id}`)];
}

// A name's score, the share it gets right, or nothing.
export function nameScore({ label_score: score }) {
  return score === null ? null : `right ${score.toFixed(2)}`;
}

export function evidence(store, feature) {
  const { now } = store;
  const card = cardOf(now, feature);
  const here = whereOf(now, feature);
  return h(
    "div",
    { class: "evidence" },
    h("p", {}, sentences(feature, card)),
    card?.keywords.length
      ? h(
          "p",
          { class: "words" },
          card.keywords.map((word) => h("span", {}, word)),
        )
      : null,
    card && spread(card.deciles, here),
    card &&
      h(
        "p",
        { class: "quiet small" },
        here.map((one) => `${letter(one.response)}: ${tenth(one.projection, card.deciles)}`).join(" · "),
      ),
    h(
      "div",
      { class: "actions" },
      h("button", { type: "button", onclick: () => steerBy(store, String(feature.id)) }, "Steer it"),
      feature.label &&
        h("button", { type: "button", onclick: () => steerBy(store, feature.label) }, `Steer all “${feature.label}”`),
      feature.url?.startsWith("https://") &&
        h("a", { href: feature.url, rel: "noreferrer noopener", target: "_blank" }, "Look it up"),
    ),
  );
}

// Where each response's projection lies, as far as the answer told it.
export function whereOf(state, feature) {
  return rowsOf(state, state.model).flatMap((row) => {
    const found = row.features?.find((one) => one.id === feature.id && one.model === feature.model);
    return found
      ? [{ response: row.response, projection: found.projection, isChosen: row.response === state.response }]
      : [];
  });
}

function steerBy(store, name) {
  const { steer, model } = store.now;
  store.set({ steer: { ...steer, [model]: { [name]: 1, ...steer[model] } }, view: "steer" });
}

function sentences(feature, card) {
  const said = [];
  if (feature.projection !== undefined)
    said.push(
      "It projects to ",
      number(feature.projection),
      " here; its latent ",
      feature.fired ? "fired. " : "did not fire. ",
    );
  if (!card) return said;
  const more = card.sign > 0 ? "preferred" : "rejected";
  said.push(`Chosen because ${more} responses fire it more`);
  said.push(card.difference === null ? ". " : ` (${signed(100 * card.difference, 1)} points). `);
  if (card.stability !== null)
    said.push(`${(100 * card.stability).toFixed(0)} % of resampled training sets choose it too. `);
  if (card.agreement !== null)
    said.push(`Its projection tells when the latent fires with AUROC ${card.agreement.toFixed(2)}. `);
  said.push(
    card.label === null ? "No name held." : `Its name tells so with balanced accuracy ${card.label_score.toFixed(2)}.`,
  );
  return said;
}
