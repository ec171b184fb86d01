// The server, live: throughput, queue, where time goes, and whether what is asked still looks like what the models
// learnt from. Asks only while somebody looks.

import { h, svg } from "./dom.js";
import { samples, total } from "./prometheus.js";
import { basesOf } from "./scoring.js";

const EVERY_MS = 2000;
const KEPT = 90;
const STAGES = ["encode", "wait", "forward", "head"];
const CALM = 0.1;
const MOVED = 0.25;

export function server(store, _act, ask) {
  const seen = [];
  const figures = h("dl", { class: "figures-grid" });
  const chart = svg("svg", {
    class: "running",
    viewBox: "0 0 100 40",
    preserveAspectRatio: "none",
    "aria-hidden": "true",
  });
  const caption = h("p", { class: "quiet small" });
  const drift = h("div", { class: "drift" });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const element = h(
    "div",
    { class: "server" },
    problem,
    h("h3", {}, "Now"),
    figures,
    caption,
    chart,
    h("h3", {}, "Drift"),
    drift,
  );
  let timer = 0;
  let isLeft = false;
  const look = async () => {
    try {
      if (!document.hidden) {
        seen.push({ time: performance.now(), found: samples(await ask("metrics")) });
        if (seen.length > KEPT) seen.shift();
        figures.replaceChildren(...entries(seen));
        const rates = seen.slice(1).map((one, i) => rate(seen[i], one));
        caption.textContent = `Tokens a second over the last three minutes, at most ${Math.max(...rates, 0).toFixed(0)}`;
        chart.replaceChildren(...line(rates));
        drift.replaceChildren(...(await drifts(store.now, ask)));
        problem.hidden = true;
      }
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
    if (!isLeft) timer = setTimeout(look, EVERY_MS);
  };
  const leave = () => {
    isLeft = true;
    clearTimeout(timer);
  };
  look();
  return { element, draw: () => {}, leave };
}

function entries(seen) {
  const [first, last] = [seen[0], seen.at(-1)];
  const now = (name, labels) => total(last.found, name, labels);
  const since = (name, labels) => now(name, labels) - total(first.found, name, labels);
  const tokens = now("sparserm_tokens_total");
  const saved = now("sparserm_tokens_saved_total");
  return [
    entry("Tokens a second", rate(seen.at(-2), last).toFixed(0), "between the last two looks"),
    entry("Tokens a second when busy", now("sparserm_tokens_per_second").toFixed(0)),
    entry("Rewards given", now("sparserm_scored_total").toLocaleString("en")),
    entry("Waiting", `${now("sparserm_queue_items")} items`, `${now("sparserm_queue_tokens")} tokens`),
    entry("Promised", `${now("sparserm_backlog_tokens")} tokens`),
    entry("Being answered", `${Math.max(now("sparserm_requests_in_flight") - 1, 0)} requests`),
    entry(
      "Spared by shared prefixes",
      tokens ? `${((100 * saved) / tokens).toFixed(0)} %` : "none yet",
      `${saved.toLocaleString("en")} tokens`,
    ),
    entry("Failed requests", now("sparserm_errors_total").toLocaleString("en"), causes(last.found)),
    ...STAGES.map((stage) => entry(`Mean ${stage}`, mean(since, stage) ?? mean(now, stage) ?? "none yet")),
  ];
}

function entry(name, value, more) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value, more && h("small", { class: "quiet" }, ` ${more}`)));
}

function mean(of, stage) {
  const count = of("sparserm_stage_seconds_count", { stage });
  return count ? `${((1000 * of("sparserm_stage_seconds_sum", { stage })) / count).toFixed(1)} ms` : null;
}

function causes(found) {
  return found
    .filter((one) => one.name === "sparserm_errors_total" && one.value)
    .map((one) => `${one.labels.cause} ${one.value}`)
    .join(", ");
}

function rate(before, after) {
  if (!before) return 0;
  const more = total(after.found, "sparserm_tokens_total") - total(before.found, "sparserm_tokens_total");
  return (1000 * Math.max(more, 0)) / (after.time - before.time);
}

function line(rates) {
  const most = Math.max(...rates, 1);
  const points = rates.map(
    (value, i) => `${100 - ((rates.length - 1 - i) * 100) / (KEPT - 2)},${39 - (38 * value) / most}`,
  );
  return [
    svg("line", { class: "zero", x1: 0, x2: 100, y1: 39, y2: 39 }),
    svg("polyline", { class: "plus", points: points.join(" ") }),
  ];
}

async function drifts(state, ask) {
  const found = await Promise.all(
    basesOf(state, state.model).map((base) => ask(`v1/models/${encodeURIComponent(base)}/drift`)),
  );
  const rows = found.flatMap(({ model, callers }) =>
    Object.entries(callers).map(([caller, one]) => driftRow(model, caller, one)),
  );
  if (!rows.length) return [h("p", { class: "quiet" }, "Nobody has asked this model yet.")];
  const head = ["Model", "Caller", "Responses", "Reward", "Distance", "Projections"].map((name) =>
    h("th", { scope: "col" }, name),
  );
  return [
    h(
      "div",
      { class: "scrolls", tabindex: 0, role: "group", "aria-label": "Drift by caller" },
      h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)),
    ),
    h(
      "p",
      { class: "quiet small" },
      `Population stability index against training responses, from 200 responses on: below ${CALM} calm, above ${MOVED} moved.`,
    ),
  ];
}

function driftRow(model, caller, one) {
  const cell = (value) =>
    h(
      "td",
      {},
      value === undefined || value === null
        ? h("span", { class: "quiet" }, "too few")
        : [
            value.toFixed(2),
            h("small", { class: "quiet" }, ` ${value < CALM ? "calm" : value < MOVED ? "shifting" : "moved"}`),
          ],
    );
  return h(
    "tr",
    {},
    h("td", {}, model),
    h("td", {}, caller),
    h("td", {}, String(one.responses)),
    cell(one.reward),
    cell(one.distance),
    cell(one.projections),
  );
}
