// The passages of a response with the largest weights in its reward, and how its model reads passages.

import { h, number } from "../lib/dom.js";
import { modelCard } from "../lib/scoring.js";

const WEIGHTINGS = { worst: "the worst count most", best: "the best count most", equal: "all count equally" };

// A row has passages only if its model reads them and passages were computed.
export function passageParts(state, row) {
  if (!row.passages) return [];
  const reading = modelCard(state, row.model)?.passages;
  return [
    h("h3", {}, "Passages with the largest weights"),
    h("p", { class: "muted small" }, reading && readingText(reading)),
    h("ol", {}, row.passages.map(passageRow)),
  ];
}

function readingText({ weighting, share }) {
  const remaining = share < 1 ? `, the whole response has ${percentText(1 - share)}` : "";
  return (
    `This model also scores each sentence, and ${WEIGHTINGS[weighting]}. ` +
    `Together they have ${percentText(share)} of the weight in the reward${remaining}.`
  );
}

function passageRow({ start, end, text, reward, weight }) {
  return h(
    "li",
    { title: `response tokens ${start + 1} to ${end}` },
    h("span", { class: "passage-text" }, text),
    h(
      "span",
      { class: "small" },
      h("span", { class: "muted" }, "reward "),
      number(reward),
      h("span", { class: "muted" }, ", weight "),
      h("data", { value: String(weight) }, percentText(weight)),
    ),
  );
}

function percentText(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}
