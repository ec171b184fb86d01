// Live server status: throughput, queue, time per stage, and drift by caller. It polls only while the tab is open
// and the page is visible.

import { h, svg } from "../lib/dom.js";
import { parseSamples, sumSamples } from "../lib/prometheus.js";
import { baseModels } from "../lib/scoring.js";

const POLL_INTERVAL_MS = 2000;
const MAX_SNAPSHOTS = 90;
const STAGES = ["encode", "wait", "forward", "head"];
// Usual reading of the population stability index: below 0.1 stable, above 0.25 shifted.
const STABLE_PSI = 0.1;
const DRIFTED_PSI = 0.25;

export function serverStatusView(store, _actions, callApi) {
  const snapshots = [];
  const parts = createParts();
  let timer = 0;
  let isClosed = false;
  const refresh = async () => {
    snapshots.push({ time: performance.now(), samples: parseSamples(await callApi("metrics")) });
    if (snapshots.length > MAX_SNAPSHOTS) snapshots.shift();
    drawMetrics(parts, snapshots);
    parts.drift.replaceChildren(...(await driftTable(store.state, callApi)));
    parts.problem.hidden = true;
  };
  const poll = async () => {
    try {
      if (!document.hidden) await refresh();
    } catch (error) {
      parts.problem.textContent = error.message;
      parts.problem.hidden = false;
    }
    if (!isClosed) timer = setTimeout(poll, POLL_INTERVAL_MS);
  };
  const close = () => {
    isClosed = true;
    clearTimeout(timer);
  };
  poll();
  return { element: parts.element, draw: () => {}, close };
}

function createParts() {
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const figures = h("dl", { class: "figures-grid" });
  const caption = h("p", { class: "muted small" });
  const chart = svg("svg", {
    class: "line-chart",
    viewBox: "0 0 100 40",
    preserveAspectRatio: "none",
    "aria-hidden": "true",
  });
  const drift = h("div", { class: "drift" });
  const content = [problem, h("h3", {}, "Now"), figures, caption, chart, h("h3", {}, "Drift"), drift];
  return { element: h("div", { class: "server" }, content), problem, figures, caption, chart, drift };
}

function drawMetrics(parts, snapshots) {
  const rates = snapshots.slice(1).map((snapshot, i) => tokenRate(snapshots[i], snapshot));
  const maximum = Math.max(...rates, 0).toFixed(0);
  parts.figures.replaceChildren(...figureEntries(snapshots));
  parts.caption.textContent = `Tokens per second over the last three minutes; maximum ${maximum}`;
  parts.chart.replaceChildren(...rateLine(rates));
}

function figureEntries(snapshots) {
  const [first, last] = [snapshots[0], snapshots.at(-1)];
  const now = (name, labels) => sumSamples(last.samples, name, labels);
  const sinceOpened = (name, labels) => now(name, labels) - sumSamples(first.samples, name, labels);
  const tokens = now("sparserm_tokens_total");
  const saved = now("sparserm_tokens_saved_total");
  return [
    figure("Tokens per second", tokenRate(snapshots.at(-2), last).toFixed(0), "between the last two polls"),
    figure("Tokens per second when busy", now("sparserm_tokens_per_second").toFixed(0)),
    figure("Rewards computed", now("sparserm_scored_total").toLocaleString("en")),
    figure("Queued", `${now("sparserm_queue_items")} items`, `${now("sparserm_queue_tokens")} tokens`),
    figure("Admitted", `${now("sparserm_backlog_tokens")} tokens`),
    figure("In flight", `${Math.max(now("sparserm_requests_in_flight") - 1, 0)} requests`),
    figure(
      "Saved by shared prefixes",
      tokens ? `${((100 * saved) / tokens).toFixed(0)} %` : "none yet",
      `${saved.toLocaleString("en")} tokens`,
    ),
    figure("Failed requests", now("sparserm_errors_total").toLocaleString("en"), errorCauses(last.samples)),
    ...STAGES.map((stage) =>
      figure(`Mean ${stage}`, meanStageTime(sinceOpened, stage) ?? meanStageTime(now, stage) ?? "none yet"),
    ),
  ];
}

function figure(name, value, detail) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value, detail && h("small", { class: "muted" }, ` ${detail}`)));
}

function meanStageTime(metric, stage) {
  const count = metric("sparserm_stage_seconds_count", { stage });
  return count ? `${((1000 * metric("sparserm_stage_seconds_sum", { stage })) / count).toFixed(1)} ms` : null;
}

function errorCauses(samples) {
  return samples
    .filter((sample) => sample.name === "sparserm_errors_total" && sample.value)
    .map((sample) => `${sample.labels.cause} ${sample.value}`)
    .join(", ");
}

function tokenRate(previous, snapshot) {
  if (!previous) return 0;
  const [before, after] = [previous, snapshot].map(({ samples }) => sumSamples(samples, "sparserm_tokens_total"));
  return (1000 * Math.max(after - before, 0)) / (snapshot.time - previous.time);
}

function rateLine(rates) {
  const maximum = Math.max(...rates, 1);
  const points = rates.map(
    (value, i) => `${100 - ((rates.length - 1 - i) * 100) / (MAX_SNAPSHOTS - 2)},${39 - (38 * value) / maximum}`,
  );
  return [
    svg("line", { class: "zero", x1: 0, x2: 100, y1: 39, y2: 39 }),
    svg("polyline", { class: "plus", points: points.join(" ") }),
  ];
}

async function driftTable(state, callApi) {
  const reports = await Promise.all(
    baseModels(state, state.model).map((base) => callApi(`v1/models/${encodeURIComponent(base)}/drift`)),
  );
  const rows = reports.flatMap(({ model, callers }) =>
    Object.entries(callers).map(([caller, drift]) => driftRow(model, caller, drift)),
  );
  if (!rows.length) return [h("p", { class: "muted" }, "No requests for this model yet.")];
  const head = ["Model", "Caller", "Responses", "Reward", "Distance", "Projections"].map((name) =>
    h("th", { scope: "col" }, name),
  );
  return [
    h(
      "div",
      { class: "scrollable", tabindex: 0, role: "group", "aria-label": "Drift by caller" },
      h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)),
    ),
    h(
      "p",
      { class: "muted small" },
      `Population stability index against training responses, from 200 responses on: below ${STABLE_PSI} stable, above ${DRIFTED_PSI} drifted.`,
    ),
  ];
}

function driftRow(model, caller, drift) {
  return h(
    "tr",
    {},
    h("td", {}, model),
    h("td", {}, caller),
    h("td", {}, String(drift.responses)),
    psiCell(drift.reward),
    psiCell(drift.distance),
    psiCell(drift.projections),
  );
}

function psiCell(psi) {
  if (psi === undefined || psi === null) return h("td", {}, h("span", { class: "muted" }, "too few responses"));
  const status = psi < STABLE_PSI ? "stable" : psi < DRIFTED_PSI ? "shifting" : "drifted";
  return h("td", {}, psi.toFixed(2), h("small", { class: "muted" }, ` ${status}`));
}
