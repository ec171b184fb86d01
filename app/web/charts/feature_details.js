// The details of one feature: its name and the name's accuracy, why it was selected, the distribution of its
// projections over training responses, and the positions of this page's responses in it.

import { h, number, responseLetter, signed } from "../lib/dom.js";
import { featureCard, modelCard, rowsOf } from "../lib/scoring.js";
import { decileName, distributionChart } from "./distribution.js";

// A feature's name and latent number; several features can have the same name.
export function featureName(feature, model) {
  const prefix = feature.model === model ? "" : `${feature.model} `;
  const latent = `${prefix}#${feature.id}`;
  if (!feature.label) return [h("span", { class: "muted" }, latent)];
  return [feature.label, h("small", { class: "muted" }, ` ${isRemainder(feature) ? prefix : latent}`)];
}

// Whether a feature merges all that is orthogonal to the selected directions. It has a label, but no latent.
export function isRemainder({ sign }) {
  return sign === 0;
}

export function featureDetails(store, feature) {
  const { state } = store;
  const card = featureCard(state, feature);
  const projections = projectionsOf(state, feature);
  return h(
    "div",
    { class: "details" },
    h("p", {}, factSentences(state, feature, card)),
    card?.keywords.length
      ? h(
          "p",
          { class: "words" },
          card.keywords.map((word) => h("span", {}, word)),
        )
      : null,
    card?.snippets.length
      ? h(
          "ul",
          { class: "snippets small" },
          card.snippets.map((text) => h("li", {}, text)),
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
  const concept = featureCard(store.state, feature)?.concept;
  return h(
    "div",
    { class: "actions" },
    h("button", { type: "button", onclick: () => addSlider(store, String(feature.id)) }, "Steer this feature"),
    concept && h("button", { type: "button", onclick: () => addSlider(store, concept) }, `Steer “${concept}”`),
    feature.url?.startsWith("https://") &&
      h("a", { href: feature.url, rel: "noreferrer noopener", target: "_blank" }, "Open feature page"),
  );
}

function addSlider(store, name) {
  const { steer, model } = store.state;
  store.set({ steer: { ...steer, [model]: { [name]: 1, ...steer[model] } }, view: "steer" });
}

function factSentences(state, feature, card) {
  const readsResponses = modelCard(state, feature.model)?.sae_input === "responses";
  return [
    ...(feature.projection === undefined ? [] : projectionSentence(state, feature, readsResponses)),
    ...(card ? cardSentences(card, readsResponses) : []),
  ];
}

// In a comparison, projections and activations are differences, and `fired` says whether the activations differ.
function projectionSentence(state, feature, readsResponses) {
  const isDifference = state.view === "contrast";
  const subject = isDifference ? "Difference of the projections: " : "Projection here: ";
  if (isRemainder(feature)) return [subject, number(feature.projection), ". "];
  const outcome = isDifference
    ? `the activations of its latent ${feature.fired ? "differ" : "do not differ"}`
    : `its latent ${feature.fired ? "fired" : "did not fire"}${readsResponses ? " on this response" : ""}`;
  return [subject, number(feature.projection), `; ${outcome}. `];
}

function cardSentences(card, readsResponses) {
  if (isRemainder(card))
    return ["It merges all that is orthogonal to the selected directions: it shows what they add, not what they are about."];
  const side = card.sign > 0 ? "preferred" : "rejected";
  const facts = [
    readsResponses
      ? `Its latent fires on a response as a whole. Selected because it fires on more of the ${side} responses`
      : `Selected because it fires more often on ${side} responses`,
  ];
  facts.push(card.difference === null ? ". " : ` (${signed(100 * card.difference, 1)} points). `);
  if (card.stability !== null)
    facts.push(`Also selected in ${(100 * card.stability).toFixed(0)} % of resampled training sets. `);
  if (card.agreement !== null)
    facts.push(`Its projection predicts whether the latent fires with AUROC ${card.agreement.toFixed(2)}. `);
  return [...facts, nameSentence(card)];
}

function nameSentence({ label_score: score, label_items: items }) {
  if (score === null) return "It has no name.";
  if (items > 0)
    return `In a blind test with ${items} texts, its name was recognised with balanced accuracy ${score.toFixed(2)}.`;
  return `Its name was made automatically; it predicts whether the latent fires with balanced accuracy ${score.toFixed(2)}.`;
}
