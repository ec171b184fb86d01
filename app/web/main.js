// The page: what is asked on the left, what came of it on the right, one state between them.

import { asking, debounced } from "./api.js";
import { showCode, showLink } from "./code.js";
import { compose } from "./compose.js";
import { at } from "./dom.js";
import { showForgetting, unlock } from "./keys.js";
import { panel } from "./panel.js";
import { rewards } from "./rewards.js";
import { scoring } from "./scoring.js";
import { changed, EXAMPLE, fromFragment, holding, namesOf, toFragment } from "./state.js";

const MOST_AT_FIRST = 4;
const KEEP_MS = 400;
const NOTHING = {
  cards: [],
  features: {},
  scored: null,
  steered: {},
  credits: null,
  comparison: null,
  busy: false,
  problem: null,
  drawn: {},
};

const store = holding({ ...EXAMPLE, ...NOTHING, ...(await linked()) });
const ask = asking(unlock);
const act = scoring(store, ask);
compose(store, act);
rewards(store);
panel(store, act, ask);
at("show-code").onclick = () => showCode(store.now);
at("show-link").onclick = () => showLink(store.now);
showForgetting();
remember();
await begin();

async function begin() {
  try {
    await meet();
    await act.score();
  } catch (error) {
    store.set({ problem: error.message });
  }
}

// What is served here; of the models a link names, those that are.
async function meet() {
  const [{ data: cards }, about] = await Promise.all([ask("v1/models"), ask("version")]);
  at("backbone").textContent = `${about.backbone} on ${about.device}, version ${about.sparserm}`;
  const named = namesOf(cards).filter((name) => store.now.models.includes(name));
  const plain = cards.filter((card) => !card.composite).map((card) => card.id);
  const models = named.length ? named : plain.slice(0, MOST_AT_FIRST);
  store.set({ cards, models, model: models.includes(store.now.model) ? store.now.model : models[0] });
}

async function linked() {
  const fragment = location.hash.slice(1);
  return fragment ? ((await fromFragment(fragment)) ?? {}) : {};
}

// The address follows what has been scored, so that a reload or a copied address brings it back.
function remember() {
  let mine = "";
  const keep = debounced(async () => {
    mine = await toFragment(store.now);
    history.replaceState(null, "", `#${mine}`);
  }, KEEP_MS);
  store.watch((now, before) => {
    if (now.scored && changed(now, before, "scored", "steer", "model", "response", "rival", "view")) keep();
  });
  addEventListener("hashchange", async () => {
    if (location.hash.slice(1) === mine) return;
    store.set({ ...(await linked()), drawn: {} });
    await begin();
  });
}
