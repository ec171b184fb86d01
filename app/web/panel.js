// The lower right: one view at a time, chosen by tabs that arrow keys walk along.

import { contrast } from "./contrast.js";
import { at, h, letter, signed } from "./dom.js";
import { features } from "./features.js";
import { rowsOf } from "./scoring.js";
import { server } from "./server.js";
import { VIEWS } from "./state.js";
import { steer } from "./steer.js";
import { tokens } from "./tokens.js";
import { waterfall } from "./waterfall.js";

const STEPS = { ArrowRight: 1, ArrowLeft: -1 };
const KINDS = {
  made: ["What it is made of", waterfall, why],
  tokens: ["Token by token", tokens, why],
  contrast: ["Against another", contrast, (state) => `What ${state.model} sees between two responses`],
  steer: ["Steer", steer, (state) => `What if ${state.model} saw it otherwise`],
  features: ["Features", features, (state) => `What ${state.model} reads`],
  server: ["Server", server, () => "The server"],
};

// A view is {element, draw(state, before), leave?()}; it is made anew whenever it is turned to.
export function panel(store, act, ask) {
  let view = null;
  const show = (state, before) => {
    at("why-title").textContent = KINDS[state.view][2](state);
    if (!view || before?.view !== state.view) {
      view?.leave?.();
      view = KINDS[state.view][1](store, act, ask);
      at("panel").replaceChildren(view.element);
      at("panel").setAttribute("aria-labelledby", `tab-${state.view}`);
      mark(state.view);
      before = null;
    }
    view.draw(state, before);
  };
  at("tabs").replaceChildren(...VIEWS.map((name) => tab(store, name)));
  at("tabs").onkeydown = (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    const next = VIEWS.at((VIEWS.indexOf(store.now.view) + step) % VIEWS.length);
    store.set({ view: next });
    at(`tab-${next}`).focus();
  };
  store.watch(show);
  show(store.now, null);
}

function tab(store, name) {
  return h(
    "button",
    {
      type: "button",
      role: "tab",
      id: `tab-${name}`,
      "aria-controls": "panel",
      onclick: () => store.set({ view: name }),
    },
    KINDS[name][0],
  );
}

function mark(chosen) {
  for (const name of VIEWS) {
    at(`tab-${name}`).setAttribute("aria-selected", name === chosen);
    at(`tab-${name}`).tabIndex = name === chosen ? 0 : -1;
  }
}

function why(state) {
  const row = rowsOf(state, state.model)[state.response];
  return row && !row.error ? `Why ${letter(state.response)} got ${signed(row.reward)} from ${state.model}` : "Why";
}
