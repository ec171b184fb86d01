// The server's public API, asked with the visitor's key if there is one. Addresses are relative, so the page
// also works behind a path.

const KEY = "sparserm.key";

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

// `unlock(wasWrong)` is asked for a key when the server wants one; several requests may wait for the same answer.
export function asking(unlock) {
  let waiting = null;
  async function ask(path, { body, signal } = {}) {
    for (;;) {
      const used = key.get();
      const response = await send(path, body, signal, used);
      if (response.status !== 401) return read(response);
      if (key.get() === used) {
        waiting ??= unlock(used !== null).finally(() => (waiting = null));
        await waiting;
      }
    }
  }
  return ask;
}

// Runs one at a time: a newer run ends the older one, whose answer nobody wants any more.
export function latest(work) {
  let current = null;
  return async (...given) => {
    current?.abort();
    const mine = new AbortController();
    current = mine;
    try {
      return await work(mine.signal, ...given);
    } catch (error) {
      if (mine.signal.aborted) return undefined;
      throw error;
    }
  };
}

export function debounced(work, ms) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), ms);
  };
}

async function send(path, body, signal, secret) {
  const headers = { "X-SparseRM-Caller": "page" };
  if (secret) headers.Authorization = `Bearer ${secret}`;
  if (body) headers["Content-Type"] = "application/json";
  const wish = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) };
  try {
    return await fetch(new URL(path, document.baseURI), wish);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer.", 0);
  }
}

async function read(response) {
  const isJson = response.headers.get("content-type")?.startsWith("application/json");
  const found = isJson ? await response.json() : await response.text();
  if (response.ok) return found;
  const later = response.headers.get("retry-after");
  const when = later ? ` Try again in ${later} s.` : "";
  const { message, param } = found.error ?? { message: "The server failed" };
  throw new Refused(`${message}${param ? ` (${param})` : ""}.${when}`, response.status);
}
