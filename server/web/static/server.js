// What the server can do, and how it is asked: addresses beside the page's own, and a key where one is needed.

const KEY = "canary.key";

export const address = (path) => new URL(path, document.baseURI);

/** The websocket's address. */
export function streamAddress() {
  const url = address("stream");
  url.protocol = url.protocol.replace("http", "ws");
  return url;
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  sessionStorage.setItem(KEY, value.trim());
}

/**
 * {model, languages, default_language, max_upload_mb, subtitles}, asked for until the server has them. onWait(sentence)
 * tells why not yet; askForKey() resolves once there is another key to try.
 */
export async function capabilities({ onWait, askForKey }) {
  for (;;) {
    const response = await ask();
    if (response?.ok) return response.json();
    if (response?.status === 401) await askForKey();
    else {
      onWait(response ? await reason(response) : "Waiting for the server");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

async function reason(response) {
  const { error } = await response.json().catch(() => ({}));
  return error && error.code !== "model_loading" ? error.message : "Loading the model";
}

async function ask() {
  try {
    return await fetch(address("capabilities"), { headers: key() ? { authorization: `Bearer ${key()}` } : {} });
  } catch {
    return null;
  }
}
