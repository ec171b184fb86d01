// The state of the page: one object in a store. Its inputs can be packed into the fragment of a link, which
// browsers do not send to any server.

export const ROLES = ["system", "user", "assistant", "tool"];
export const VIEWS = ["breakdown", "tokens", "contrast", "steer", "features", "server"];
const MAX_MESSAGES = 200;
const MAX_RESPONSES = 64;
const MAX_STEER_FACTOR = 1000;

export const EXAMPLE = {
  messages: [{ role: "user", content: "Does sugar make children hyperactive?" }],
  responses: ["Studies have found no such effect.", "Yes, a single sweet makes any child hyperactive for a day."],
  models: [],
  lengthControl: false,
  steer: {},
  model: "",
  response: 0,
  rival: 1,
  view: "breakdown",
};
const LINK_FIELDS = Object.keys(EXAMPLE);

// Listeners get every change in order, also when a listener itself changes the state.
export function createStore(initialState) {
  let state = initialState;
  const listeners = [];
  const pendingChanges = [];
  return {
    get state() {
      return state;
    },
    set(change) {
      const previous = state;
      state = { ...state, ...change };
      pendingChanges.push([state, previous]);
      if (pendingChanges.length > 1) return;
      while (pendingChanges.length) {
        for (const listener of listeners) listener(...pendingChanges[0]);
        pendingChanges.shift();
      }
    },
    subscribe(listener) {
      listeners.push(listener);
    },
  };
}

// Whether any of the named fields differs between two states.
export function hasChanged(state, previous, ...fields) {
  return fields.some((field) => state[field] !== previous[field]);
}

// Every name that can be scored with: models, models under a profile (`model@profile`), composites.
export function modelNames(cards) {
  return cards.flatMap(({ id, profiles }) => [id, ...Object.keys(profiles ?? {}).map((profile) => `${id}@${profile}`)]);
}

// The index of the response that the selected one is compared with.
export function rivalOf({ response, rival }) {
  if (rival !== response) return rival;
  return response === 0 ? 1 : 0;
}

export async function toFragment(state) {
  const inputs = Object.fromEntries(LINK_FIELDS.map((field) => [field, state[field]]));
  const packed = new Uint8Array(await pipe(new CompressionStream("deflate-raw"), JSON.stringify(inputs)));
  let text = "";
  for (const byte of packed) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

// The inputs packed in a fragment, or null if it does not contain any. A fragment is untrusted: only fields of the
// right shape are used.
export async function fromFragment(fragment) {
  try {
    const text = atob(fragment.replaceAll("-", "+").replaceAll("_", "/"));
    const packed = Uint8Array.from(text, (character) => character.charCodeAt(0));
    const unpacked = await pipe(new DecompressionStream("deflate-raw"), packed);
    return sanitize(JSON.parse(new TextDecoder().decode(unpacked)));
  } catch {
    return null;
  }
}

function pipe(stream, content) {
  return new Response(new Blob([content]).stream().pipeThrough(stream)).arrayBuffer();
}

function sanitize(raw) {
  const isText = (value) => typeof value === "string";
  const isTurn = (turn) => ROLES.includes(turn?.role) && isText(turn.content);
  const listOf = (values, isValid, max) => (Array.isArray(values) ? values.filter(isValid).slice(0, max) : []);
  const index = (value) => (Number.isInteger(value) && value >= 0 && value < MAX_RESPONSES ? value : 0);
  const messages = listOf(raw.messages, isTurn, MAX_MESSAGES).map(({ role, content }) => ({ role, content }));
  const responses = listOf(raw.responses, isText, MAX_RESPONSES);
  if (!messages.length || !responses.length) return null;
  return {
    messages,
    responses,
    models: listOf(raw.models, isText, MAX_RESPONSES),
    lengthControl: raw.lengthControl === true,
    steer: sanitizeSteer(raw.steer),
    model: isText(raw.model) ? raw.model : "",
    response: Math.min(index(raw.response), responses.length - 1),
    rival: Math.min(index(raw.rival), responses.length - 1),
    view: VIEWS.includes(raw.view) ? raw.view : EXAMPLE.view,
  };
}

function sanitizeSteer(raw) {
  const isFactor = ([, factor]) => Number.isFinite(factor) && Math.abs(factor) <= MAX_STEER_FACTOR;
  return Object.fromEntries(
    Object.entries(raw ?? {}).map(([model, factors]) => [
      model,
      Object.fromEntries(Object.entries(factors ?? {}).filter(isFactor)),
    ]),
  );
}
