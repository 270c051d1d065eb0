// A live session over WS /stream that survives lost connections: sound goes in, results come out.

import { Backlog } from "./backlog.js";

// What was recorded while there was no connection is sent this many frames at a time, when one new frame comes.
const CATCH_UP = 5;
// Kept of a silence, in case that speech is in it which the server did not tell of yet.
const QUIET_S = 3;
// More than this unsent in the socket means that the network is slower than speech.
const MAX_BUFFERED = 1 << 20;
const RETRY_S = [0.3, 1, 2, 4, 8];
const GIVE_UP_S = 60;
const STOP_S = 20;

/**
 * states: "connecting", "live", "reconnecting", "stopping", and at the end "closed".
 *
 * handlers: onState(state), onResult(result), onForget() when unfinished text will be written anew, onLag(seconds),
 * onProblem(message), onClosed(message or null). Times of results are in seconds from the start of the recording.
 */
export class LiveSession {
  #url;
  #start;
  #handlers;
  #backlog;
  #socket = null;
  #state = "connecting";
  #offset = 0;
  #epoch = 0;
  #lostAt = 0;
  #tries = 0;
  #timer = 0;
  #quiet = true;

  /** options: {url, key, sampleRate, language, targetLanguage}; key may be "". */
  constructor({ url, key, sampleRate, language, targetLanguage }, handlers) {
    this.#url = url;
    // Browsers cannot set headers on a websocket; a key travels as a subprotocol.
    this.protocols = key ? ["captions", `openai-insecure-api-key.${key}`] : [];
    this.#start = { type: "start", encoding: "pcm_s16le", sample_rate: Math.round(sampleRate), language };
    if (targetLanguage) this.#start.target_language = targetLanguage;
    this.#handlers = handlers;
    this.#backlog = new Backlog(sampleRate);
    this.#connect();
  }

  get state() {
    return this.#state;
  }

  /** Int16Array of mono samples. */
  send(samples) {
    if (this.#state === "closed" || this.#state === "stopping") return;
    this.#backlog.push(samples);
    if (this.#quiet && this.#state === "live") this.#backlog.settle(this.#backlog.end - QUIET_S);
    if (this.#state === "live") this.#flush(CATCH_UP);
  }

  /** Write out what is left, then close. */
  stop() {
    if (this.#state === "closed" || this.#state === "stopping") return;
    if (this.#state !== "live") return this.#close(null);
    this.#flush(Infinity, Infinity);
    this.#socket.send(JSON.stringify({ type: "stop" }));
    this.#enter("stopping");
    this.#timer = setTimeout(() => this.#close("The last words did not come: the server took too long."), STOP_S * 1000);
  }

  #connect() {
    const socket = new WebSocket(this.#url, this.protocols);
    this.#socket = socket;
    socket.onopen = () => socket.send(JSON.stringify(this.#start));
    socket.onmessage = ({ data }) => socket === this.#socket && this.#take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(code, reason);
  }

  #take(message) {
    switch (message.type) {
      case "ready":
        this.#offset = this.#backlog.rewind();
        this.#epoch++;
        this.#tries = 0;
        this.#lostAt = 0;
        this.#enter("live");
        return this.#flush(CATCH_UP);
      case "result":
        return this.#result(message);
      case "speech_started":
        this.#quiet = false;
        return;
      case "lag":
        return this.#handlers.onLag(message.seconds);
      case "error":
        return message.fatal ? this.#close(message.message) : this.#handlers.onProblem(message.message);
      case "done":
        return this.#close(null);
    }
  }

  #result({ segment_id, start, end, words, ...rest }) {
    const moved = (seconds) => this.#offset + seconds;
    const timed = words?.map((word) => ({ ...word, start: moved(word.start), end: moved(word.end) }));
    // Segments are counted anew on each connection.
    const id = `${this.#epoch}.${segment_id}`;
    this.#handlers.onResult({ ...rest, id, start: moved(start), end: moved(end), words: timed });
    if (rest.is_final) this.#backlog.settle(moved(end));
    if (rest.is_final && rest.speech_final) this.#quiet = true;
  }

  #flush(most, buffered = MAX_BUFFERED) {
    for (let i = 0; i < most && this.#socket.bufferedAmount < buffered; i++) {
      const samples = this.#backlog.next();
      if (!samples) return;
      this.#socket.send(samples);
    }
  }

  #lost(code, reason) {
    if (this.#state === "stopping") return this.#close("The connection was lost before the last words came.");
    // Refused for good, in words of the server's own.
    if (code === 1008 && reason) return this.#close(reason);
    this.#lostAt ||= Date.now();
    if (Date.now() - this.#lostAt > GIVE_UP_S * 1000) return this.#close("The server cannot be reached.");
    if (this.#epoch) this.#handlers.onForget();
    this.#enter("reconnecting");
    const wait = RETRY_S[Math.min(this.#tries++, RETRY_S.length - 1)];
    this.#timer = setTimeout(() => this.#connect(), wait * 1000);
  }

  #close(message) {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket.close();
    this.#enter("closed");
    this.#handlers.onClosed(message);
  }

  #enter(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#handlers.onState(state);
  }
}
