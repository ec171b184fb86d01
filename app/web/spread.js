// A distribution known by its deciles, drawn as equal areas, and where some numbers fall in it.

import { h, letter, svg } from "./dom.js";

const TENTHS = ["lowest", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "highest"];
const HEIGHT = 40;
const TAIL = 1.2;

export function tenth(value, deciles) {
  return `${TENTHS[deciles.filter((one) => one < value).length]} tenth`;
}

// Between 0 and 100: how many training responses lie below, as far as deciles can tell.
export function rank(value, deciles) {
  const above = deciles.findIndex((one) => one >= value);
  if (above === -1) return 97;
  if (above === 0) return 3;
  const [low, high] = [deciles[above - 1], deciles[above]];
  return 10 * (above + (high > low ? (value - low) / (high - low) : 0));
}

export function spread(deciles, marks) {
  const width = (deciles.at(-1) - deciles[0]) / 8 || 1;
  const values = marks.map((one) => one.projection);
  const low = Math.min(deciles[0] - TAIL * width, ...values);
  const high = Math.max(deciles.at(-1) + TAIL * width, ...values);
  const x = (value) => (100 * (value - low)) / (high - low);
  const edges = [deciles[0] - TAIL * width, ...deciles, deciles.at(-1) + TAIL * width];
  const bins = edges
    .slice(1)
    .map((to, i) => ({ from: edges[i], to, density: 1 / Math.max(to - edges[i], width / 50) }));
  const most = Math.max(...bins.map((bin) => bin.density));
  return h(
    "figure",
    { class: "spread" },
    svg(
      "svg",
      { viewBox: `0 0 100 ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      bins.map(({ from, to, density }, i) =>
        svg("rect", {
          class: i % 9 === 0 ? "tail" : "bin",
          x: x(from),
          width: Math.max(x(to) - x(from), 0.2),
          y: HEIGHT * (1 - density / most),
          height: (HEIGHT * density) / most,
        }),
      ),
    ),
    marks.map((one) =>
      h(
        "span",
        { class: one.isChosen ? "mark chosen" : "mark", place: { "--at": `${x(one.projection)}%` } },
        letter(one.response),
      ),
    ),
    h(
      "figcaption",
      { class: "hidden" },
      "Projections of held-out training responses in tenths, with the responses on this page marked",
    ),
  );
}
