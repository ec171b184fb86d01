// Every direction a model reads: searched, sorted, and where the chosen response falls among training responses.

import { further, h, letter, number } from "./dom.js";
import { evidence, named, nameScore, whereOf } from "./evidence.js";
import { basesOf, rowsOf } from "./scoring.js";
import { rank } from "./spread.js";
import { changed } from "./state.js";
import { unfold } from "./waterfall.js";

const PAGE = 40;
const size = (one) => Math.abs(one ?? 0);
const ORDERS = {
  "largest share here": (one) => -size(one.contribution),
  "tells preferred from rejected": (one) => -size(one.difference),
  "furthest from usual here": (one) => -size(one.rank - 50),
  "surest name": (one) => -size(one.label_score),
};

export function features(store, act) {
  let [order] = Object.keys(ORDERS);
  let wanted = "";
  let only = "";
  let shown = PAGE;
  let found = [];
  const list = h("ol", { class: "features" });
  const count = h("p", { class: "quiet small", role: "status" });
  const more = further(() => {
    shown += PAGE;
    again();
  });
  const changing = (work) => (event) => {
    work(event.target.value);
    shown = PAGE;
    again();
  };
  const controls = h(
    "div",
    { class: "filters" },
    h("input", {
      type: "search",
      "aria-label": "Search by name, keyword or number",
      placeholder: "name, keyword or number",
      oninput: changing((value) => (wanted = value.trim().toLowerCase())),
    }),
    h(
      "select",
      { "aria-label": "Order", onchange: changing((value) => (order = value)) },
      Object.keys(ORDERS).map((one) => h("option", {}, one)),
    ),
    h(
      "select",
      { "aria-label": "Direction", onchange: changing((value) => (only = value)) },
      h("option", { value: "" }, "both directions"),
      h("option", { value: "1" }, "of preferred responses"),
      h("option", { value: "-1" }, "of rejected responses"),
    ),
  );
  const again = () => {
    const fits = (one) => (!only || String(one.sign) === only) && (!wanted || words(one).includes(wanted));
    const fitting = found.filter(fits).sort((a, b) => ORDERS[order](a) - ORDERS[order](b));
    list.replaceChildren(...fitting.slice(0, shown).map((one) => row(store, one)));
    count.textContent = `${fitting.length} of ${found.length} features`;
    more.hidden = fitting.length <= shown;
  };
  const draw = (state, before) => {
    if (!before || state.model !== before.model) act.learn(state.model);
    if (before && !changed(state, before, "features", "model", "response", "scored", "steered")) return;
    found = joined(state);
    again();
  };
  return { element: h("div", {}, controls, count, heads(), list, more), draw };
}

// The cards of a model's features, each with what the answer says of it.
function joined(state) {
  const told = rowsOf(state, state.model)[state.response]?.features ?? [];
  const here = new Map(told.map((one) => [`${one.model.split("@")[0]}/${one.id}`, one]));
  return basesOf(state, state.model).flatMap((base) =>
    (state.features[base] ?? []).map((card) => {
      const mine = here.get(`${base}/${card.id}`);
      return { model: state.model, ...card, ...mine, rank: mine ? rank(mine.projection, card.deciles) : 50 };
    }),
  );
}

function heads() {
  const names = [
    "feature",
    "fired more by",
    "its name",
    "where responses fall, by tenths of training responses",
    "share here",
  ];
  return h(
    "div",
    { class: "heads quiet", "aria-hidden": "true" },
    names.map((name) => h("span", {}, name)),
  );
}

function words(one) {
  return [`#${one.id}`, one.label ?? "", ...one.keywords].join(" ").toLowerCase();
}

function row(store, one) {
  const open = h("button", { type: "button", class: "name", "aria-expanded": "false" }, named(one, store.now.model));
  const item = h(
    "li",
    {},
    open,
    h(
      "span",
      {
        class: "sign quiet",
        title: one.sign > 0 ? "preferred responses fire it more" : "rejected responses fire it more",
      },
      one.sign > 0 ? "▲ preferred" : "▽ rejected",
    ),
    h("span", { class: "quiet small" }, nameScore(one) ?? "not named"),
    strip(store.now, one),
    one.contribution === undefined ? h("span") : number(one.contribution, 3),
  );
  open.onclick = () => unfold(open, item, () => evidence(store, one));
  return item;
}

// From the lowest training response to the highest, in even tenths.
function strip(state, one) {
  return h(
    "span",
    { class: "strip", title: "where the responses fall among training responses" },
    whereOf(state, one).map(({ response, projection, isChosen }) =>
      h("i", {
        class: isChosen ? "dot chosen" : "dot",
        title: letter(response),
        place: { "--at": `${rank(projection, one.deciles)}%` },
      }),
    ),
  );
}
