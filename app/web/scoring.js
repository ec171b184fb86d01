// Asks for what the page shows, and puts the answers into the state; an answer nobody waits for is dropped.

import { debounced, latest } from "./api.js";
import { changed, rivalOf } from "./state.js";

const ALL = 1000;
const PAUSE_MS = 120;

export function scoring(store, ask) {
  const whole = latest(async (signal) => {
    const { messages, responses, models, lengthControl } = store.now;
    const body = { ...request(store.now), model: models, top_k: ALL, clusters: true };
    const answer = await ask("v1/rewards", { body, signal });
    const scored = {
      messages,
      responses,
      models,
      lengthControl,
      rows: byModel(answer.data),
      usage: answer.usage,
      timings: answer.timings,
    };
    const kept = models.includes(store.now.model) ? store.now.model : models[0];
    const last = responses.length - 1;
    store.set({
      scored,
      steered: {},
      credits: null,
      comparison: null,
      model: kept,
      response: Math.min(store.now.response, last),
      rival: Math.min(store.now.rival, last),
    });
  });
  const steered = async (signal, model) => {
    const { scored } = store.now;
    const steer = active(store.now, model);
    const body = { ...request(scored), model, top_k: ALL, clusters: true, steer };
    const rows = steer && (await ask("v1/rewards", { body, signal })).data;
    if (store.now.scored !== scored) return;
    const { [model]: _, ...others } = store.now.steered;
    store.set({ steered: rows ? { ...others, [model]: rows } : others, credits: null });
  };
  const credited = latest(async (signal, wanted) => {
    const asked = store.now;
    const { model, scored } = asked;
    const some = { ...scored, responses: wanted.map((response) => scored.responses[response]) };
    const body = { ...request(some), model, top_k: 0, explain: "tokens", steer: active(asked, model) ?? {} };
    const { data } = await ask("v1/rewards", { body, signal });
    if (changed(store.now, asked, "scored", "steered")) return;
    const known = store.now.credits?.model === model ? store.now.credits.rows : {};
    const found = Object.fromEntries(
      data.map((row) => [wanted[row.response], { ...row, response: wanted[row.response] }]),
    );
    store.set({ credits: { model, rows: { ...known, ...found } } });
  });
  const compared = latest(async (signal) => {
    const { model, scored, response } = store.now;
    const rival = rivalOf(store.now);
    const { messages, responses, lengthControl } = scored;
    const pair = { messages, chosen: responses[response], rejected: responses[rival] };
    const body = { model, pairs: [pair], top_k: ALL, length_control: lengthControl };
    const { data } = await ask("v1/compare", { body, signal });
    if (store.now.scored === scored) store.set({ comparison: { model, response, rival, found: data[0] } });
  });
  const known = async (model) => {
    for (const base of basesOf(store.now, model)) {
      if (!store.now.features[base]) {
        const found = await everyFeature(ask, base);
        store.set({ features: { ...store.now.features, [base]: found } });
      }
    }
  };
  return act(store, { whole, steered, credited, compared, known });
}

// The same, with failures told on the page instead of raised.
function act(store, works) {
  let busy = 0;
  const told =
    (work) =>
    async (...given) => {
      store.set({ busy: ++busy > 0, problem: null });
      try {
        await work(...given);
      } catch (error) {
        store.set({ problem: error.message });
      } finally {
        store.set({ busy: --busy > 0 });
      }
    };
  const [score, credit, compare, learn] = [works.whole, works.credited, works.compared, works.known].map(told);
  const steer = forEach(() => told(latest(works.steered)));
  const resteer = () => {
    const { scored, steer: wishes } = store.now;
    const moved = Object.keys(wishes).filter((model) => scored.models.includes(model) && active(store.now, model));
    return Promise.all(moved.map(steer));
  };
  return {
    score: async () => {
      await score();
      if (store.now.scored) await resteer();
    },
    steer: forEach(() => debounced(steer, PAUSE_MS)),
    credit,
    compare,
    learn,
  };
}

// Work that models do not share: steering one must not end what another waits for.
function forEach(make) {
  const made = new Map();
  return (model) => {
    if (!made.has(model)) made.set(model, make());
    return made.get(model)(model);
  };
}

// What is asked about the texts, whatever is asked of the models.
export function request({ messages, responses, lengthControl }) {
  return { inputs: [{ messages, responses }], length_control: lengthControl };
}

// The factors of a model that change something, or null if none does.
export function active(state, model) {
  const moved = Object.entries(state.steer[model] ?? {}).filter(([, factor]) => factor !== 1);
  return moved.length ? Object.fromEntries(moved) : null;
}

export function rowsOf(state, model) {
  return state.steered[model] ?? state.scored?.rows[model] ?? [];
}

// The bundles whose directions a name reads: its own, or those of a composite's heads.
export function basesOf(state, model) {
  const card = state.cards.find((one) => one.id === model);
  return Object.keys(card?.composite?.weights ?? { [model]: 1 }).map((name) => name.split("@")[0]);
}

// The card of the feature that a contribution speaks of, once it is known.
export function cardOf(state, feature) {
  return state.features[feature.model.split("@")[0]]?.find((one) => one.id === feature.id);
}

function byModel(data) {
  const rows = Object.create(null);
  for (const row of data) (rows[row.model] ??= [])[row.response] = row;
  return rows;
}

async function everyFeature(ask, base) {
  const found = [];
  for (;;) {
    const page = await ask(`v1/models/${encodeURIComponent(base)}/features?offset=${found.length}&limit=${ALL}`);
    found.push(...page.data);
    if (!page.data.length || found.length >= page.total) return found;
  }
}
