// Lists every feature a model reads, with search and sorting, and shows where the responses lie among training
// responses.

import { percentileRank } from "../charts/distribution.js";
import { featureDetails, featureName, isRemainder, projectionsOf } from "../charts/feature_details.js";
import { toggleDetails } from "../charts/waterfall.js";
import { h, number, responseLetter, showMoreButton } from "../lib/dom.js";
import { baseModels, rowsOf } from "../lib/scoring.js";
import { hasChanged } from "../lib/state.js";

const PAGE_SIZE = 40;
const MEDIAN_RANK = 50;
const magnitude = (value) => Math.abs(value ?? 0);
const SORT_KEYS = {
  "largest contribution here": (feature) => -magnitude(feature.contribution),
  "largest preference difference": (feature) => -magnitude(feature.difference),
  "furthest from the median": (feature) => -magnitude(feature.rank - MEDIAN_RANK),
  "highest name accuracy": (feature) => -magnitude(feature.label_score),
};

export function featuresView(store, actions) {
  const filter = { order: Object.keys(SORT_KEYS)[0], query: "", sign: "" };
  let shown = PAGE_SIZE;
  let features = [];
  const list = h("ol", { class: "features" });
  const count = h("p", { class: "muted small", role: "status" });
  const showMore = showMoreButton(() => {
    shown += PAGE_SIZE;
    redraw();
  });
  const controls = filterControls((change) => {
    Object.assign(filter, change);
    shown = PAGE_SIZE;
    redraw();
  });
  const redraw = () => {
    const matching = filterAndSort(features, filter);
    list.replaceChildren(...matching.slice(0, shown).map((feature) => featureRow(store, feature)));
    count.textContent = `${matching.length} of ${features.length} features`;
    showMore.hidden = matching.length <= shown;
  };
  const draw = (state, previous) => {
    if (!previous || state.model !== previous.model) actions.loadFeatures(state.model);
    if (previous && !hasChanged(state, previous, "features", "model", "response", "scored", "steered")) return;
    features = featuresWithContributions(state);
    redraw();
  };
  return { element: h("div", {}, controls, count, columnHeadings(), list, showMore), draw };
}

function filterControls(onChange) {
  return h(
    "div",
    { class: "filters" },
    h("input", {
      type: "search",
      "aria-label": "Search by name, keyword or number",
      placeholder: "name, keyword or number",
      oninput: (event) => onChange({ query: event.target.value.trim().toLowerCase() }),
    }),
    h(
      "select",
      { "aria-label": "Order", onchange: (event) => onChange({ order: event.target.value }) },
      Object.keys(SORT_KEYS).map((order) => h("option", {}, order)),
    ),
    h(
      "select",
      { "aria-label": "Direction", onchange: (event) => onChange({ sign: event.target.value }) },
      h("option", { value: "" }, "both directions"),
      h("option", { value: "1" }, "of preferred responses"),
      h("option", { value: "-1" }, "of rejected responses"),
    ),
  );
}

function filterAndSort(features, { order, query, sign }) {
  const sortKey = SORT_KEYS[order];
  const matches = (feature) =>
    (!sign || String(feature.sign) === sign) && (!query || searchText(feature).includes(query));
  return features.filter(matches).sort((a, b) => sortKey(a) - sortKey(b));
}

// The cards of a model's features, each joined with its contribution to the selected response.
function featuresWithContributions(state) {
  const rowFeatures = rowsOf(state, state.model)[state.response]?.features ?? [];
  const byKey = new Map(rowFeatures.map((feature) => [`${feature.model.split("@")[0]}/${feature.id}`, feature]));
  return baseModels(state, state.model).flatMap((base) =>
    (state.features[base] ?? []).map((card) => {
      const contribution = byKey.get(`${base}/${card.id}`);
      const rank = contribution ? percentileRank(contribution.projection, card.deciles) : MEDIAN_RANK;
      return { model: state.model, ...card, ...contribution, rank };
    }),
  );
}

function columnHeadings() {
  const names = [
    "feature",
    "fires more on",
    "name accuracy",
    "position among training responses (deciles)",
    "contribution",
  ];
  return h(
    "div",
    { class: "column-headings muted", "aria-hidden": "true" },
    names.map((name) => h("span", {}, name)),
  );
}

function searchText({ id, label, keywords }) {
  return [`#${id}`, label ?? "", ...keywords].join(" ").toLowerCase();
}

function featureRow(store, feature) {
  const toggle = h(
    "button",
    { type: "button", class: "name", "aria-expanded": "false" },
    featureName(feature, store.state.model),
  );
  const row = h(
    "li",
    {},
    toggle,
    signCell(feature),
    h("span", { class: "muted small" }, nameAccuracy(feature)),
    positionStrip(store.state, feature),
    feature.contribution === undefined ? h("span") : number(feature.contribution, 3),
  );
  toggle.onclick = () => toggleDetails(toggle, row, () => featureDetails(store, feature));
  return row;
}

function signCell(feature) {
  if (isRemainder(feature))
    return h("span", { class: "sign muted", title: "It merges all that is orthogonal to the selected directions" }, "remainder");
  const isPreferred = feature.sign > 0;
  return h(
    "span",
    { class: "sign muted", title: `It fires more often on ${isPreferred ? "preferred" : "rejected"} responses` },
    isPreferred ? "▲ preferred" : "▽ rejected",
  );
}

// The balanced accuracy of a feature's name; the label of the remainder is not a hypothesis.
function nameAccuracy(feature) {
  if (isRemainder(feature)) return "";
  return feature.label_score === null ? "no name" : `accuracy ${feature.label_score.toFixed(2)}`;
}

// Marks each response at its percentile, from the lowest to the highest training response.
function positionStrip(state, feature) {
  return h(
    "span",
    { class: "strip", title: "where the responses lie among training responses" },
    projectionsOf(state, feature).map(({ response, projection, isSelected }) =>
      h("i", {
        class: isSelected ? "dot selected" : "dot",
        title: responseLetter(response),
        cssVars: { "--at": `${percentileRank(projection, feature.deciles)}%` },
      }),
    ),
  );
}
