// A live session over WS /stream that survives lost connections: sound goes in, results come out.

import { Backlog } from "./backlog.js";

// Sound recorded without a connection is sent this many frames at a time, each time a new frame comes.
const CATCH_UP = 5;
// Sound kept during silence: speech may have begun in it that the server has not reported yet.
const QUIET_S = 3;
// More than this unsent in the socket means that the network is slower than speech.
const MAX_BUFFERED = 1 << 20;
const RETRY_S = [0.3, 1, 2, 4, 8];
// After this many failed tries in a row, say so.
const TRIES_IN_SILENCE = 2;
const GIVE_UP_S = 60;
// The server may first have to load its model again, and answers within 20 s by default.
const READY_S = 30;
const STOP_S = 20;
// Fatal errors that pass by themselves.
const PASSING = ["model_loading", "stopping"];

/**
 * states: "connecting", "live", "reconnecting", "stopping", and at the end "closed".
 *
 * handlers: onState(state), onResult(result), onForget() when unfinished text will be written anew, onLag(seconds),
 * onProblem(message), onUnreachable() when connecting has failed repeatedly and goes on, onClosed(message or null).
 * Times of results are in seconds from the start of the recording.
 */
export class LiveSession {
  #url;
  #key;
  #start;
  #handlers;
  #backlog;
  #socket = null;
  #state = "";
  #isReady = false;
  #offset = 0;
  #epoch = 0;
  #lostAt = Date.now();
  #tries = 0;
  #retryTimer = 0;
  #readyTimer = 0;
  #stopTimer = 0;
  #quiet = true;
  #behindAt = 0;

  /** options: {url, key, sampleRate, language, targetLanguage}; key() returns the current key, or "". */
  constructor({ url, key, sampleRate, language, targetLanguage }, handlers) {
    this.#url = url;
    this.#key = key;
    this.#start = { type: "start", encoding: "pcm_s16le", sample_rate: Math.round(sampleRate), language };
    if (targetLanguage) this.#start.target_language = targetLanguage;
    this.#handlers = handlers;
    this.#backlog = new Backlog(sampleRate);
    this.#enter("connecting");
    this.#retryTimer = setTimeout(() => this.#connect());
  }

  get state() {
    return this.#state;
  }

  /** Whether the server takes sound right now. */
  get isReady() {
    return this.#isReady;
  }

  /** Int16Array of mono samples. Kept until the server is ready for them. */
  send(samples) {
    if (this.#state === "closed" || this.#state === "stopping") return;
    this.#backlog.push(samples);
    if (!this.#isReady) return;
    this.#flush(CATCH_UP);
    // Silence is forgotten only once the server has had time to hear it.
    if (this.#backlog.unsent) this.#behindAt = this.#backlog.end;
    const heard = this.#backlog.end - this.#behindAt > QUIET_S;
    if (this.#quiet && heard) this.#backlog.settle(this.#backlog.end - QUIET_S);
  }

  /** No more sound: get the text for what was recorded, then close. Without a connection, this still waits for one. */
  stop() {
    if (this.#state === "closed" || this.#state === "stopping") return;
    this.#enter("stopping");
    this.#expectLastWords();
    if (this.#isReady) this.#finish();
  }

  /** Close at once. */
  end() {
    if (this.#state !== "closed") this.#close(null);
  }

  /** Connect now instead of at the next scheduled try. */
  retry() {
    if (this.#socket || this.#state === "closed") return;
    clearTimeout(this.#retryTimer);
    this.#connect();
  }

  #connect() {
    // Browsers cannot set headers on a websocket; a key travels as a subprotocol.
    const key = this.#key();
    const protocols = key ? ["captions", `openai-insecure-api-key.${key}`] : [];
    let socket;
    try {
      socket = new WebSocket(this.#url, protocols);
    } catch {
      return this.#close("The API key has a character that browsers cannot send here, such as a space or a slash.");
    }
    this.#socket = socket;
    this.#readyTimer = setTimeout(() => this.#lost(), READY_S * 1000);
    socket.onopen = () => socket.send(JSON.stringify(this.#start));
    socket.onmessage = ({ data }) => socket === this.#socket && this.#take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(code, reason);
  }

  #take(message) {
    if (this.#state === "stopping") this.#expectLastWords();
    switch (message.type) {
      case "ready":
        return this.#ready();
      case "result":
        return this.#result(message);
      case "speech_started":
        this.#quiet = false;
        return;
      case "lag":
        return this.#handlers.onLag(message.seconds);
      case "error":
        if (!message.fatal) return this.#handlers.onProblem(message.message);
        return PASSING.includes(message.code) ? this.#lost() : this.#close(message.message);
      case "done":
        return this.#close(null);
    }
  }

  #ready() {
    clearTimeout(this.#readyTimer);
    this.#isReady = true;
    this.#offset = this.#backlog.rewind();
    this.#behindAt = this.#backlog.end;
    this.#epoch++;
    this.#tries = 0;
    this.#lostAt = 0;
    if (this.#state === "stopping") return this.#finish();
    this.#enter("live");
    this.#flush(CATCH_UP);
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

  #finish() {
    this.#flush(Infinity, Infinity);
    this.#socket.send(JSON.stringify({ type: "stop" }));
  }

  #expectLastWords() {
    clearTimeout(this.#stopTimer);
    this.#stopTimer = setTimeout(
      () =>
        this.#close(
          this.#isReady
            ? "The last words are missing: the server took too long."
            : "The last words are missing: the connection to the server was lost.",
        ),
      STOP_S * 1000,
    );
  }

  #lost(code, reason) {
    this.#letGo();
    // Refused for good, with the server's own message.
    if (code === 1008 && reason) return this.#close(reason);
    this.#lostAt ||= Date.now();
    if (Date.now() - this.#lostAt > GIVE_UP_S * 1000) return this.#close("The connection to the server was lost.");
    if (this.#epoch) {
      this.#handlers.onForget();
      if (this.#state === "live") this.#enter("reconnecting");
    }
    const wait = RETRY_S[Math.min(this.#tries++, RETRY_S.length - 1)];
    this.#retryTimer = setTimeout(() => this.#connect(), wait * 1000);
    if (this.#tries === TRIES_IN_SILENCE) this.#handlers.onUnreachable();
  }

  /** Detach from the socket; ignore whatever it still delivers. */
  #letGo() {
    clearTimeout(this.#readyTimer);
    this.#isReady = false;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #close(message) {
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#stopTimer);
    this.#letGo();
    this.#enter("closed");
    this.#handlers.onClosed(message);
  }

  #enter(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#handlers.onState(state);
  }
}
