// What is on the page: one object. What is asked can travel in the fragment of a link, which no browser sends.

export const ROLES = ["system", "user", "assistant", "tool"];
export const VIEWS = ["made", "tokens", "contrast", "steer", "features", "server"];
const MOST = { messages: 200, responses: 64, factor: 1000 };

export const EXAMPLE = {
  messages: [{ role: "user", content: "Does sugar make children hyperactive?" }],
  responses: ["Studies have found no such effect.", "Yes, a single sweet makes any child hyperactive for a day."],
  models: [],
  lengthControl: false,
  steer: {},
  model: "",
  response: 0,
  rival: 1,
  view: "made",
};
const TRAVELS = Object.keys(EXAMPLE);

// Listeners are told of every change, each of one after the other, even where one of them changes more.
export function holding(first) {
  let state = first;
  const listeners = [];
  const news = [];
  return {
    get now() {
      return state;
    },
    set(change) {
      const before = state;
      state = { ...state, ...change };
      news.push([state, before]);
      if (news.length > 1) return;
      while (news.length) {
        for (const tell of listeners) tell(...news[0]);
        news.shift();
      }
    },
    watch(tell) {
      listeners.push(tell);
    },
  };
}

// Whether any of these differs between two states.
export function changed(now, before, ...names) {
  return names.some((name) => now[name] !== before[name]);
}

// Every name that can be asked for: models, models under a profile, composites.
export function namesOf(cards) {
  return cards.flatMap(({ id, profiles }) => [id, ...Object.keys(profiles ?? {}).map((one) => `${id}@${one}`)]);
}

// The response that the chosen one is compared with.
export function rivalOf({ response, rival }) {
  if (rival !== response) return rival;
  return response === 0 ? 1 : 0;
}

export async function toFragment(state) {
  const asked = Object.fromEntries(TRAVELS.map((name) => [name, state[name]]));
  const packed = new Uint8Array(await through(new CompressionStream("deflate-raw"), JSON.stringify(asked)));
  let text = "";
  for (const byte of packed) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

// What a fragment asks, or null if it is none of ours; whoever made it, only what has the right shape is taken.
export async function fromFragment(fragment) {
  try {
    const text = atob(fragment.replaceAll("-", "+").replaceAll("_", "/"));
    const packed = Uint8Array.from(text, (one) => one.charCodeAt(0));
    const unpacked = await through(new DecompressionStream("deflate-raw"), packed);
    return sane(JSON.parse(new TextDecoder().decode(unpacked)));
  } catch {
    return null;
  }
}

function through(stream, content) {
  return new Response(new Blob([content]).stream().pipeThrough(stream)).arrayBuffer();
}

function sane(raw) {
  const isText = (one) => typeof one === "string";
  const isTurn = (one) => ROLES.includes(one?.role) && isText(one.content);
  const list = (found, fits, most) => (Array.isArray(found) ? found.filter(fits).slice(0, most) : []);
  const place = (found) => (Number.isInteger(found) && found >= 0 && found < MOST.responses ? found : 0);
  const messages = list(raw.messages, isTurn, MOST.messages).map(({ role, content }) => ({ role, content }));
  const responses = list(raw.responses, isText, MOST.responses);
  if (!messages.length || !responses.length) return null;
  return {
    messages,
    responses,
    models: list(raw.models, isText, MOST.responses),
    lengthControl: raw.lengthControl === true,
    steer: saneSteer(raw.steer),
    model: isText(raw.model) ? raw.model : "",
    response: Math.min(place(raw.response), responses.length - 1),
    rival: Math.min(place(raw.rival), responses.length - 1),
    view: VIEWS.includes(raw.view) ? raw.view : EXAMPLE.view,
  };
}

function saneSteer(raw) {
  const isFactor = ([, factor]) => Number.isFinite(factor) && Math.abs(factor) <= MOST.factor;
  return Object.fromEntries(
    Object.entries(raw ?? {}).map(([model, keys]) => [
      model,
      Object.fromEntries(Object.entries(keys ?? {}).filter(isFactor)),
    ]),
  );
}
