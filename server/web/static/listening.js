// The microphone joined to a live session: from pressing Start until the last words are there.

import { openMicrophone } from "./capture.js";
import { key, streamAddress } from "./server.js";
import { LiveSession } from "./stream.js";

// A level that no working microphone in a room stays below, and how long it may.
const SILENT_RMS = 0.0003;
const SILENT_S = 6;

/**
 * `handlers` are LiveSession's, besides onLevel(rms), onElapsed(seconds) and onSilent(): nothing at all is heard.
 * Use `Listening.begin`.
 */
export class Listening {
  #microphone = null;
  #session = null;
  #handlers;
  #languages;
  #elapsed = 0;
  #silence = 0;

  /** languages: {language, targetLanguage}. Throws MicrophoneError. */
  static async begin(languages, handlers) {
    const listening = new Listening(languages, handlers);
    listening.#microphone = await openMicrophone({
      onFrame: (frame) => listening.#hear(frame),
      onLost: (message) => {
        handlers.onProblem(message);
        listening.stop();
      },
    });
    listening.#connect();
    return listening;
  }

  constructor(languages, handlers) {
    this.#languages = languages;
    this.#handlers = handlers;
  }

  get elapsed() {
    return this.#elapsed;
  }

  /** No more sound; the words for what was said still come. */
  stop() {
    this.#microphone.close();
    this.#session.stop();
  }

  #connect() {
    const { onClosed } = this.#handlers;
    const options = { url: streamAddress(), key: key(), sampleRate: this.#microphone.sampleRate, ...this.#languages };
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
    this.#silence = rms < SILENT_RMS ? this.#silence + seconds : 0;
    this.#handlers.onLevel(rms);
    this.#handlers.onElapsed(this.#elapsed);
    if (this.#silence > SILENT_S) {
      this.#silence = -Infinity;
      this.#handlers.onSilent();
    }
  }
}
