// Entry point: the form on the left, the results on the right, and one store that both read and write.

import { renderRewardBars } from "./charts/reward_bars.js";
import { promptForKey, showForgetButton } from "./dialogs/api_key.js";
import { showCode, showLink } from "./dialogs/code_and_link.js";
import { createApiClient, debounce } from "./lib/api.js";
import { byId } from "./lib/dom.js";
import { createActions } from "./lib/scoring.js";
import { createStore, EXAMPLE, fromFragment, hasChanged, modelNames, toFragment } from "./lib/state.js";
import { renderForm } from "./panels/compose.js";
import { renderTabs } from "./panels/tabs.js";

const MAX_MODELS_AT_START = 4;
const FRAGMENT_DELAY_MS = 400;
const EMPTY_RESULTS = {
  cards: [],
  features: {},
  scored: null,
  steered: {},
  credits: null,
  comparison: null,
  busy: false,
  problem: null,
  formVersion: {},
};

const store = createStore({ ...EXAMPLE, ...EMPTY_RESULTS, ...(await stateFromLink()) });
const callApi = createApiClient(promptForKey);
const actions = createActions(store, callApi);
renderForm(store, actions);
renderRewardBars(store);
renderTabs(store, actions, callApi);
byId("show-code").onclick = () => showCode(store.state);
byId("show-link").onclick = () => showLink(store.state);
showForgetButton();
keepFragmentCurrent();
await loadAndScore();

async function loadAndScore() {
  try {
    await loadModels();
    await actions.score();
  } catch (error) {
    store.set({ problem: error.message });
  }
}

// Loads the served models. Models that a link names but this server does not serve are dropped.
async function loadModels() {
  const [{ data: cards }, version] = await Promise.all([callApi("v1/models"), callApi("version")]);
  byId("backbone").textContent = `${version.backbone} on ${version.device}, version ${version.sparserm}`;
  const requested = modelNames(cards).filter((name) => store.state.models.includes(name));
  const singleModels = cards.filter((card) => !card.composite).map((card) => card.id);
  const models = requested.length ? requested : singleModels.slice(0, MAX_MODELS_AT_START);
  store.set({ cards, models, model: models.includes(store.state.model) ? store.state.model : models[0] });
}

async function stateFromLink() {
  const fragment = location.hash.slice(1);
  return fragment ? ((await fromFragment(fragment)) ?? {}) : {};
}

// Writes the scored state into the address, so that a reload or a copied address restores it.
function keepFragmentCurrent() {
  let ownFragment = "";
  const writeFragment = debounce(async () => {
    ownFragment = await toFragment(store.state);
    history.replaceState(null, "", `#${ownFragment}`);
  }, FRAGMENT_DELAY_MS);
  store.subscribe((state, previous) => {
    if (state.scored && hasChanged(state, previous, "scored", "steer", "model", "response", "rival", "view"))
      writeFragment();
  });
  addEventListener("hashchange", async () => {
    if (location.hash.slice(1) === ownFragment) return;
    store.set({ ...(await stateFromLink()), formVersion: {} });
    await loadAndScore();
  });
}
