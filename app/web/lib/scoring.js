// Sends the requests behind the page and writes their results into the store. A result that a newer request has
// made obsolete is dropped.

import { abortPrevious, debounce } from "./api.js";
import { hasChanged, rivalOf } from "./state.js";

const ALL_FEATURES = 1000;
const STEER_DELAY_MS = 120;
// Up to this total of response tokens, a comparison also asks for the share of each token.
const MAX_COMPARED_TOKENS = 1500;

// The actions that panels call. An action reports a failure as `problem` in the store and does not throw.
export function createActions(store, callApi) {
  const reportErrors = createErrorReporter(store);
  const requests = createRequests(store, callApi);
  const [score, credit, compare, loadFeatures] = [
    requests.score,
    requests.credit,
    requests.compare,
    requests.loadFeatures,
  ].map(reportErrors);
  const steer = onePerModel(() => reportErrors(abortPrevious(requests.steer)));
  const steerAgain = () => {
    const { scored, steer: factors } = store.state;
    const steeredModels = Object.keys(factors).filter(
      (model) => scored.models.includes(model) && activeFactors(store.state, model),
    );
    return Promise.all(steeredModels.map(steer));
  };
  return {
    score: async () => {
      await score();
      if (store.state.scored) await steerAgain();
    },
    steer: onePerModel(() => debounce(steer, STEER_DELAY_MS)),
    credit,
    compare,
    loadFeatures,
  };
}

function createRequests(store, callApi) {
  return {
    score: abortPrevious((signal) => score(store, callApi, signal)),
    steer: (signal, model) => steer(store, callApi, signal, model),
    credit: abortPrevious((signal, responses) => credit(store, callApi, signal, responses)),
    compare: abortPrevious((signal) => compare(store, callApi, signal)),
    loadFeatures: (model) => loadFeatures(store, callApi, model),
  };
}

// Wraps a request: while it runs the store is `busy`, and a failure becomes the `problem` in the store.
function createErrorReporter(store) {
  let running = 0;
  return (work) =>
    async (...args) => {
      store.set({ busy: ++running > 0, problem: null });
      try {
        await work(...args);
      } catch (error) {
        store.set({ problem: error.message });
      } finally {
        store.set({ busy: --running > 0 });
      }
    };
}

// One function per model, so that a request for one model does not abort another model's request.
function onePerModel(create) {
  const functions = new Map();
  return (model) => {
    if (!functions.has(model)) functions.set(model, create());
    return functions.get(model)(model);
  };
}

async function score(store, callApi, signal) {
  const { messages, responses, models, lengthControl } = store.state;
  const body = { ...scoreBody(store.state), model: models, top_k: ALL_FEATURES };
  const answer = await callApi("v1/rewards", { body, signal });
  const scored = {
    messages,
    responses,
    models,
    lengthControl,
    rows: groupByModel(answer.data),
    usage: answer.usage,
    timings: answer.timings,
  };
  const model = models.includes(store.state.model) ? store.state.model : models[0];
  const last = responses.length - 1;
  store.set({
    scored,
    steered: {},
    credits: null,
    comparison: null,
    model,
    response: Math.min(store.state.response, last),
    rival: Math.min(store.state.rival, last),
  });
}

async function steer(store, callApi, signal, model) {
  const { scored } = store.state;
  const factors = activeFactors(store.state, model);
  const body = { ...scoreBody(scored), model, top_k: ALL_FEATURES, steer: factors };
  const rows = factors && (await callApi("v1/rewards", { body, signal })).data;
  if (store.state.scored !== scored) return;
  const { [model]: _, ...others } = store.state.steered;
  store.set({ steered: rows ? { ...others, [model]: rows } : others, credits: null });
}

async function credit(store, callApi, signal, responses) {
  const requestState = store.state;
  const { model, scored } = requestState;
  const selection = { ...scored, responses: responses.map((response) => scored.responses[response]) };
  const factors = activeFactors(requestState, model) ?? {};
  const body = { ...scoreBody(selection), model, top_k: 0, explain: "tokens", steer: factors };
  const { data } = await callApi("v1/rewards", { body, signal });
  if (hasChanged(store.state, requestState, "scored", "steered")) return;
  const known = store.state.credits?.model === model ? store.state.credits.rows : {};
  const rows = Object.fromEntries(
    data.map((row) => [responses[row.response], { ...row, response: responses[row.response] }]),
  );
  store.set({ credits: { model, rows: { ...known, ...rows } } });
}

async function compare(store, callApi, signal) {
  const { model, scored, response } = store.state;
  const rival = rivalOf(store.state);
  const { messages, responses, lengthControl } = scored;
  const pair = { messages, chosen: responses[response], rejected: responses[rival] };
  const rows = scored.rows[model] ?? [];
  const tokens = [response, rival].reduce((sum, index) => sum + (rows[index]?.response_tokens ?? 0), 0);
  const explain = tokens <= MAX_COMPARED_TOKENS ? "tokens" : "features";
  const body = { model, pairs: [pair], top_k: ALL_FEATURES, explain, length_control: lengthControl };
  const { data } = await callApi("v1/compare", { body, signal });
  if (store.state.scored === scored) store.set({ comparison: { model, response, rival, result: data[0] } });
}

async function loadFeatures(store, callApi, model) {
  for (const base of baseModels(store.state, model)) {
    if (!store.state.features[base]) {
      const cards = await fetchAllFeatures(callApi, base);
      store.set({ features: { ...store.state.features, [base]: cards } });
    }
  }
}

// The part of a request body that holds the texts; it does not depend on the model.
export function scoreBody({ messages, responses, lengthControl }) {
  return { inputs: [{ messages, responses }], length_control: lengthControl };
}

// The steering factors of a model other than 1, or null if there are none.
export function activeFactors(state, model) {
  const factors = Object.entries(state.steer[model] ?? {}).filter(([, factor]) => factor !== 1);
  return factors.length ? Object.fromEntries(factors) : null;
}

export function rowsOf(state, model) {
  return state.steered[model] ?? state.scored?.rows[model] ?? [];
}

// The bundles whose directions a name reads: its own bundle, or those of a composite's members.
export function baseModels(state, model) {
  const card = state.cards.find(({ id }) => id === model);
  return Object.keys(card?.composite?.weights ?? { [model]: 1 }).map((name) => name.split("@")[0]);
}

// The card of a model, also if the name includes a profile; undefined if the server does not list it.
export function modelCard(state, model) {
  return state.cards.find(({ id }) => id === model.split("@")[0]);
}

// The card of a contribution's feature, or undefined while the features are not loaded.
export function featureCard(state, feature) {
  return state.features[feature.model.split("@")[0]]?.find((card) => card.id === feature.id);
}

function groupByModel(data) {
  const rows = Object.create(null);
  for (const row of data) {
    rows[row.model] ??= [];
    rows[row.model][row.response] = row;
  }
  return rows;
}

async function fetchAllFeatures(callApi, base) {
  const cards = [];
  for (;;) {
    const path = `v1/models/${encodeURIComponent(base)}/features?offset=${cards.length}&limit=${ALL_FEATURES}`;
    const page = await callApi(path);
    cards.push(...page.data);
    if (!page.data.length || cards.length >= page.total) return cards;
  }
}
