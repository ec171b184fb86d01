// The details of one feature: its name and the name's accuracy, why it was selected, the distribution of its
// projections over training responses, and the positions of this page's responses in it.

import { h, number, responseLetter, signed } from "../lib/dom.js";
import { featureCard, rowsOf } from "../lib/scoring.js";
import { decileName, distributionChart } from "./distribution.js";

// A feature's name and latent number; several features can have the same name.
export function featureName(feature, model) {
  const prefix = feature.model === model ? "" : `${feature.model} `;
  return feature.label
    ? [feature.label, h("small", { class: "muted" }, ` ${prefix}#${feature.id}`)]
    : [h("span", { class: "muted" }, `${prefix}#${feature.id}`)];
}

// The balanced accuracy of a feature's name, or null if it has no name.
export function nameAccuracy({ label_score: score }) {
  return score === null ? null : `accuracy ${score.toFixed(2)}`;
}

export function featureDetails(store, feature) {
  const { state } = store;
  const card = featureCard(state, feature);
  const projections = projectionsOf(state, feature);
  return h(
    "div",
    { class: "details" },
    h("p", {}, factSentences(feature, card)),
    card?.keywords.length
      ? h(
          "p",
          { class: "words" },
          card.keywords.map((word) => h("span", {}, word)),
        )
      : null,
    card && distributionChart(card.deciles, projections),
    card &&
      h(
        "p",
        { class: "muted small" },
        projections
          .map(({ response, projection }) => `${responseLetter(response)}: ${decileName(projection, card.deciles)}`)
          .join(" · "),
      ),
    featureButtons(store, feature),
  );
}

// The feature's projection in each response, for the responses whose row contains the feature.
export function projectionsOf(state, feature) {
  return rowsOf(state, state.model).flatMap((row) => {
    const contribution = row.features?.find(({ id, model }) => id === feature.id && model === feature.model);
    return contribution
      ? [
          {
            response: row.response,
            projection: contribution.projection,
            isSelected: row.response === state.response,
          },
        ]
      : [];
  });
}

function featureButtons(store, feature) {
  return h(
    "div",
    { class: "actions" },
    h("button", { type: "button", onclick: () => addSlider(store, String(feature.id)) }, "Steer this feature"),
    feature.label &&
      h("button", { type: "button", onclick: () => addSlider(store, feature.label) }, `Steer all “${feature.label}”`),
    feature.url?.startsWith("https://") &&
      h("a", { href: feature.url, rel: "noreferrer noopener", target: "_blank" }, "Open feature page"),
  );
}

function addSlider(store, name) {
  const { steer, model } = store.state;
  store.set({ steer: { ...steer, [model]: { [name]: 1, ...steer[model] } }, view: "steer" });
}

function factSentences(feature, card) {
  const facts = [];
  if (feature.projection !== undefined)
    facts.push(
      "Projection here: ",
      number(feature.projection),
      feature.fired ? "; its latent fired. " : "; its latent did not fire. ",
    );
  return card ? [...facts, ...cardSentences(card)] : facts;
}

function cardSentences(card) {
  const side = card.sign > 0 ? "preferred" : "rejected";
  const facts = [`Selected because it fires more often on ${side} responses`];
  facts.push(card.difference === null ? ". " : ` (${signed(100 * card.difference, 1)} points). `);
  if (card.stability !== null)
    facts.push(`Also selected in ${(100 * card.stability).toFixed(0)} % of resampled training sets. `);
  if (card.agreement !== null)
    facts.push(`Its projection predicts whether the latent fires with AUROC ${card.agreement.toFixed(2)}. `);
  facts.push(
    card.label === null
      ? "No candidate name passed validation."
      : `Its name predicts whether the latent fires with balanced accuracy ${card.label_score.toFixed(2)}.`,
  );
  return facts;
}
