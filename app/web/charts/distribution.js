// A distribution known only by its nine deciles, drawn as ten bars of equal area, with values marked in it.

import { h, responseLetter, svg } from "../lib/dom.js";

const DECILE_NAMES = ["lowest", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "highest"];
const HEIGHT = 40;
const TAIL_WIDTH = 1.2;
// Percentiles shown for values outside the deciles, where the exact rank is unknown.
const BELOW_FIRST_DECILE = 3;
const ABOVE_LAST_DECILE = 97;

export function decileName(value, deciles) {
  return `${DECILE_NAMES[deciles.filter((decile) => decile < value).length]} decile`;
}

// The percentile of a value among training responses, interpolated between deciles.
export function percentileRank(value, deciles) {
  const above = deciles.findIndex((decile) => decile >= value);
  if (above === -1) return ABOVE_LAST_DECILE;
  if (above === 0) return BELOW_FIRST_DECILE;
  const [low, high] = [deciles[above - 1], deciles[above]];
  return 10 * (above + (high > low ? (value - low) / (high - low) : 0));
}

export function distributionChart(deciles, marks) {
  const meanWidth = (deciles.at(-1) - deciles[0]) / 8 || 1;
  const edges = [deciles[0] - TAIL_WIDTH * meanWidth, ...deciles, deciles.at(-1) + TAIL_WIDTH * meanWidth];
  const values = marks.map((mark) => mark.projection);
  const low = Math.min(edges[0], ...values);
  const high = Math.max(edges.at(-1), ...values);
  const x = (value) => (100 * (value - low)) / (high - low);
  return h(
    "figure",
    { class: "distribution" },
    svg(
      "svg",
      { viewBox: `0 0 100 ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      densityBars(edges, meanWidth, x),
    ),
    marks.map((mark) =>
      h(
        "span",
        { class: mark.isSelected ? "mark selected" : "mark", cssVars: { "--at": `${x(mark.projection)}%` } },
        responseLetter(mark.response),
      ),
    ),
    h(
      "figcaption",
      { class: "visually-hidden" },
      "Projections of held-out training responses by decile, with the responses on this page marked",
    ),
  );
}

function densityBars(edges, meanWidth, x) {
  const bins = edges
    .slice(1)
    .map((to, i) => ({ from: edges[i], to, density: 1 / Math.max(to - edges[i], meanWidth / 50) }));
  const maxDensity = Math.max(...bins.map((bin) => bin.density));
  return bins.map(({ from, to, density }, i) =>
    svg("rect", {
      class: i % 9 === 0 ? "tail" : "bin",
      x: x(from),
      width: Math.max(x(to) - x(from), 0.2),
      y: HEIGHT * (1 - density / maxDensity),
      height: (HEIGHT * density) / maxDensity,
    }),
  );
}
