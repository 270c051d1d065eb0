// What the server can do, and how to ask it: addresses relative to the page's own, and a key where one is needed.

const KEY = "canary.key";
// Longer than the server makes a request wait for its model.
const ANSWER_S = 30;
const LOADING_RETRY_S = 1;
const RETRY_S = [1, 2, 4, 8];

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
 * {model, languages, default_language, max_upload_mb, subtitles}, asked for until the server has them. Until then,
 * onLoading() or onTrouble(sentence, retry) is called after each try; retry() ends the pause before the next one.
 * askForKey() resolves once there is another key to try.
 */
export async function capabilities({ onLoading, onTrouble, askForKey }) {
  for (let failed = 0; ; ) {
    const response = await ask();
    if (response?.ok) return response.json();
    if (response?.status === 401) {
      await askForKey();
      continue;
    }
    const { code, message } = await problem(response);
    await new Promise((resolve) => {
      const isLoading = code === "model_loading";
      if (isLoading) onLoading();
      else onTrouble(message, resolve);
      const pause = isLoading ? LOADING_RETRY_S : RETRY_S[Math.min(failed++, RETRY_S.length - 1)];
      setTimeout(resolve, pause * 1000);
    });
  }
}

/** Why a live connection fails, as {message, needsKey}. */
export async function whyUnreachable() {
  const response = await ask();
  if (response?.ok) return { message: "The live connection to the server failed.", needsKey: false };
  return { message: (await problem(response)).message, needsKey: response?.status === 401 };
}

/** {code, message} of an error response, or of no response at all. */
async function problem(response) {
  if (!response) return { code: "", message: "The server does not answer." };
  const { error } = await response.json().catch(() => ({}));
  return error?.message ? error : { code: "", message: `The server answered with status ${response.status}.` };
}

async function ask() {
  const headers = key() ? { authorization: `Bearer ${key()}` } : {};
  try {
    return await fetch(address("capabilities"), { headers, signal: AbortSignal.timeout(ANSWER_S * 1000) });
  } catch {
    return null;
  }
}
