// The microphone joined to a live session: from pressing Start until the last words are there.

import { openMicrophone } from "./capture.js";
import { key, streamAddress } from "./server.js";
import { LiveSession } from "./stream.js";

// A working microphone in a room stays below this level for no longer than this.
const SILENT_RMS = 0.0003;
const SILENT_S = 6;

/**
 * `handlers` are LiveSession's, besides onLevel(rms), onElapsed(seconds), onSilent() when nothing at all is heard, and
 * onSound() when something is heard again. Use `Listening.begin`.
 */
export class Listening {
  #microphone = null;
  #session = null;
  #handlers;
  #languages;
  #elapsed = 0;
  #silence = 0;
  #isSilent = false;

  /** languages: {language, targetLanguage}. Throws MicrophoneError, or AbortError once `signal` is aborted. */
  static async begin(languages, handlers, signal) {
    const listening = new Listening(languages, handlers);
    listening.#microphone = await openMicrophone({
      onFrame: (frame) => listening.#hear(frame),
      onLost: (message) => {
        handlers.onProblem(message);
        listening.stop();
      },
    });
    if (signal.aborted) {
      listening.#microphone.close();
      throw signal.reason;
    }
    // No frame came yet: the first one finds the session there, and is kept until the server is ready.
    listening.#connect();
    return listening;
  }

  constructor(languages, handlers) {
    this.#languages = languages;
    this.#handlers = handlers;
  }

  /** Whether the session goes on without a connection. */
  get isUnreachable() {
    return !this.#session.isReady && this.#session.state !== "closed";
  }

  /** Stop recording; the last words still come. A second call does not wait for them. */
  stop() {
    this.#microphone.close();
    if (this.#session.state === "stopping") this.#session.end();
    else this.#session.stop();
  }

  /** Connect now if there is no connection. */
  retry() {
    this.#session.retry();
  }

  #connect() {
    const { onClosed } = this.#handlers;
    const options = { url: streamAddress(), key, sampleRate: this.#microphone.sampleRate, ...this.#languages };
    this.#session = new LiveSession(options, {
      ...this.#handlers,
      onClosed: (message) => {
        this.#microphone.close();
        onClosed(message);
      },
    });
  }

  #hear({ samples, rms }) {
    if (!this.#session) return;
    this.#session.send(samples);
    const seconds = samples.length / this.#microphone.sampleRate;
    this.#elapsed += seconds;
    this.#handlers.onLevel(rms);
    this.#handlers.onElapsed(this.#elapsed);
    this.#silence = rms < SILENT_RMS ? this.#silence + seconds : 0;
    const isSilent = this.#silence > SILENT_S;
    if (isSilent && !this.#isSilent) this.#handlers.onSilent();
    if (!isSilent && this.#isSilent) this.#handlers.onSound();
    this.#isSilent = isSilent;
  }
}
