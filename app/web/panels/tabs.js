// The tab panel at the lower right. It shows one view at a time; arrow keys move between the tabs.

import { waterfallView } from "../charts/waterfall.js";
import { byId, h, responseLetter, signed } from "../lib/dom.js";
import { rowsOf } from "../lib/scoring.js";
import { VIEWS } from "../lib/state.js";
import { contrastView } from "./contrast.js";
import { featuresView } from "./features.js";
import { serverStatusView } from "./server_status.js";
import { steeringView } from "./steering.js";
import { tokenCreditsView } from "./token_credits.js";

const ARROW_STEPS = { ArrowRight: 1, ArrowLeft: -1 };
const VIEW_DEFINITIONS = {
  breakdown: { tab: "Breakdown", create: waterfallView, title: rewardTitle },
  tokens: { tab: "By token", create: tokenCreditsView, title: rewardTitle },
  contrast: { tab: "Compare", create: contrastView, title: ({ model }) => `How ${model} compares two responses` },
  steer: { tab: "Steer", create: steeringView, title: ({ model }) => `Change how much ${model} weights its features` },
  features: { tab: "Features", create: featuresView, title: ({ model }) => `Features that ${model} reads` },
  server: { tab: "Server", create: serverStatusView, title: () => "The server" },
};

// A view is {element, draw(state, previous), close?()}. It is created anew each time its tab is opened.
export function renderTabs(store, actions, callApi) {
  let view = null;
  const draw = (state, previous) => {
    byId("why-title").textContent = VIEW_DEFINITIONS[state.view].title(state);
    if (!view || previous?.view !== state.view) {
      view?.close?.();
      view = VIEW_DEFINITIONS[state.view].create(store, actions, callApi);
      byId("panel").replaceChildren(view.element);
      byId("panel").setAttribute("aria-labelledby", `tab-${state.view}`);
      markSelectedTab(state.view);
      previous = null;
    }
    view.draw(state, previous);
  };
  byId("tabs").replaceChildren(...VIEWS.map((name) => tabButton(store, name)));
  byId("tabs").onkeydown = (event) => {
    const step = ARROW_STEPS[event.key];
    if (!step) return;
    const next = VIEWS.at((VIEWS.indexOf(store.state.view) + step) % VIEWS.length);
    store.set({ view: next });
    byId(`tab-${next}`).focus();
  };
  store.subscribe(draw);
  draw(store.state, null);
}

function tabButton(store, name) {
  return h(
    "button",
    {
      type: "button",
      role: "tab",
      id: `tab-${name}`,
      "aria-controls": "panel",
      onclick: () => store.set({ view: name }),
    },
    VIEW_DEFINITIONS[name].tab,
  );
}

function markSelectedTab(selected) {
  for (const name of VIEWS) {
    byId(`tab-${name}`).setAttribute("aria-selected", name === selected);
    byId(`tab-${name}`).tabIndex = name === selected ? 0 : -1;
  }
}

function rewardTitle(state) {
  const row = rowsOf(state, state.model)[state.response];
  if (!row || row.error) return "Why";
  return `Why ${responseLetter(state.response)} got ${signed(row.reward)} from ${state.model}`;
}
