// Client of the server's public API. It sends the visitor's key if there is one. Addresses are relative, so the
// page also works behind a path prefix.

const STORAGE_KEY = "sparserm.key";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(STORAGE_KEY),
  set: (value) => sessionStorage.setItem(STORAGE_KEY, value),
  forget: () => sessionStorage.removeItem(STORAGE_KEY),
};

// Returns a function that sends a request and returns the parsed response. On a 401 it calls
// `promptForKey(wasRejected)` and retries; requests that fail meanwhile wait for the same prompt.
export function createApiClient(promptForKey) {
  let prompt = null;
  async function callApi(path, { body, signal } = {}) {
    for (;;) {
      const usedKey = apiKey.get();
      const response = await send(path, body, signal, usedKey);
      if (response.status !== 401) return parseResponse(response);
      if (apiKey.get() === usedKey) {
        prompt ??= promptForKey(usedKey !== null).finally(() => (prompt = null));
        await prompt;
      }
    }
  }
  return callApi;
}

// Wraps an async function so that a new call aborts the previous one; an aborted call resolves to undefined.
export function abortPrevious(work) {
  let current = null;
  return async (...args) => {
    current?.abort();
    const controller = new AbortController();
    current = controller;
    try {
      return await work(controller.signal, ...args);
    } catch (error) {
      if (controller.signal.aborted) return undefined;
      throw error;
    }
  };
}

export function debounce(work, ms) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), ms);
  };
}

async function send(path, body, signal, key) {
  const headers = { "X-SparseRM-Caller": "page" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) };
  try {
    return await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not respond.", 0);
  }
}

async function parseResponse(response) {
  const isJson = response.headers.get("content-type")?.startsWith("application/json");
  const content = isJson ? await response.json() : await response.text();
  if (response.ok) return content;
  const retryAfter = response.headers.get("retry-after");
  const retryHint = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  const { message, param } = content.error ?? { message: "The server failed" };
  throw new ApiError(`${message}${param ? ` (${param})` : ""}.${retryHint}`, response.status);
}
