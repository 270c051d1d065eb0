// Prints what JavaScript clients get from a server as JSON: node clients.mjs URL FILE
// With the packages of package.json installed, uses openai-node and the AI SDK; otherwise sends the same requests.

import { openAsBlob } from "node:fs";
import { readFile } from "node:fs/promises";

const [base, path] = process.argv.slice(2);
const openai = await import("openai").catch(() => null);
const file = async () => new File([await openAsBlob(path)], "sample.flac");

// fetch that records each status and shortens the server's retry-after, so that tests do not wait as long.
const impatientFetch = (statuses) => async (url, options) => {
  const response = await fetch(url, options);
  // openai-node also fetches a data: URL to find out what fetch supports.
  if (String(url).startsWith(base)) statuses.push(response.status);
  const headers = new Headers(response.headers);
  if (response.status === 503 && headers.has("retry-after")) headers.set("retry-after-ms", "500");
  return new Response(response.body, { status: response.status, headers });
};

async function withSdk() {
  const statuses = [];
  const client = new openai.OpenAI({ baseURL: base, apiKey: "none", maxRetries: 30, fetch: impatientFetch(statuses) });
  const ask = async (options) =>
    client.audio.transcriptions.create({ model: "whisper-1", file: await file(), language: "en", ...options });
  const raised = async (work) =>
    work.then(
      () => "nothing",
      (error) => [error.constructor.name, error.status, error.code],
    );
  const first = (await ask({})).text;
  const deltas = [];
  let done = null;
  for await (const event of await ask({ stream: true })) {
    if (event.type === "transcript.text.delta") deltas.push(event.delta);
    else done = event.text;
  }
  const verbose = await ask({ response_format: "verbose_json", timestamp_granularities: ["word", "segment"] });
  return {
    statuses: [...statuses],
    json: first,
    text: await ask({ response_format: "text" }),
    srt: await ask({ response_format: "srt" }),
    vtt: await ask({ response_format: "vtt" }),
    verbose: { text: verbose.text, language: verbose.language, words: verbose.words.map((word) => word.word) },
    deltas,
    done,
    translation: (await client.audio.translations.create({ model: "whisper-1", file: await file() })).text,
    models: (await client.models.list()).data.map((model) => model.id),
    model: (await client.models.retrieve("toy")).id,
    notFound: await raised(client.models.retrieve("someone/else")),
    badRequest: await raised(ask({ language: "klingon" })),
    badFormat: await raised(ask({ response_format: "diarized_json" })),
  };
}

async function withoutSdk() {
  const statuses = [];
  const send = async (route, fields) => {
    const form = new FormData();
    form.append("file", await file());
    for (const [name, value] of Object.entries({ model: "whisper-1", ...fields })) {
      for (const each of [value].flat()) form.append(Array.isArray(value) ? `${name}[]` : name, String(each));
    }
    const headers = { authorization: "Bearer none", "user-agent": "OpenAI/JS 7.55.0", accept: "application/json" };
    for (;;) {
      const response = await impatientFetch(statuses)(`${base}${route}`, { method: "POST", body: form, headers });
      if (response.status !== 503) return response;
      await new Promise((resolve) => setTimeout(resolve, Number(response.headers.get("retry-after-ms"))));
    }
  };
  const ask = (fields) => send("/audio/transcriptions", { language: "en", ...fields });
  const names = { 400: "BadRequestError", 404: "NotFoundError" };
  const raised = async (response) => [names[response.status], response.status, (await response.json()).error.code];
  const first = (await (await ask({})).json()).text;
  const events = (await (await ask({ stream: true })).text())
    .split("\n\n")
    .filter(Boolean)
    .map((event) => JSON.parse(event.replace(/^data: /, "")));
  const words = { response_format: "verbose_json", timestamp_granularities: ["word", "segment"] };
  const verbose = await (await ask(words)).json();
  return {
    statuses: [...statuses],
    json: first,
    text: await (await ask({ response_format: "text" })).text(),
    srt: await (await ask({ response_format: "srt" })).text(),
    vtt: await (await ask({ response_format: "vtt" })).text(),
    verbose: { text: verbose.text, language: verbose.language, words: verbose.words.map((word) => word.word) },
    deltas: events.slice(0, -1).map((event) => event.delta),
    done: events.at(-1).text,
    translation: (await (await send("/audio/translations", {})).json()).text,
    models: (await (await fetch(`${base}/models`)).json()).data.map((model) => model.id),
    model: (await (await fetch(`${base}/models/toy`)).json()).id,
    notFound: await raised(await fetch(`${base}/models/someone%2Felse`)),
    badRequest: await raised(await ask({ language: "klingon" })),
    badFormat: await raised(await ask({ response_format: "diarized_json" })),
  };
}

async function withAiSdk() {
  const ai = await import("ai").catch(() => null);
  if (!ai) {
    // Send the SDK's request, and read the fields that its schema requires.
    const form = new FormData();
    form.append("model", "whisper-1");
    form.append("file", new File([await readFile(path)], "audio.flac", { type: "audio/flac" }));
    form.append("response_format", "verbose_json");
    form.append("timestamp_granularities[]", "segment");
    const body = await (await fetch(`${base}/audio/transcriptions`, { method: "POST", body: form })).json();
    const segments = body.segments.map(({ text, start, end }) => ({ text, startSecond: start, endSecond: end }));
    return { text: body.text, language: "en", durationInSeconds: body.duration, segments };
  }
  const { createOpenAI } = await import("@ai-sdk/openai");
  const model = createOpenAI({ baseURL: base, apiKey: "none" }).transcription("whisper-1");
  const transcribe = ai.transcribe ?? ai.experimental_transcribe;
  const { text, language, durationInSeconds, segments } = await transcribe({
    model,
    audio: await readFile(path),
    providerOptions: { openai: { timestampGranularities: ["segment"] } },
  });
  return { text, language, durationInSeconds, segments };
}

const answers = { sdk: openai ? await withSdk() : await withoutSdk(), ai: await withAiSdk() };
console.log(JSON.stringify({ installed: Boolean(openai), ...answers }));
