// Sound that the server may still need: not sent yet, or not covered by a final text yet.

// Enough for a long line and for the time until a lost connection is given up; about 9 MB at 48 kHz.
const KEPT_S = 90;

/** Frames of mono samples in order; the oldest are dropped. Times are in seconds from the start of the recording. */
export class Backlog {
  #frames = [];
  #sent = 0;
  #end = 0;

  constructor(sampleRate) {
    this.sampleRate = sampleRate;
  }

  /** Seconds recorded so far. */
  get end() {
    return this.#end;
  }

  /** Where the kept sound begins. */
  get start() {
    return this.#frames[0]?.at ?? this.#end;
  }

  /** Seconds still to be sent. */
  get unsent() {
    return this.#sent < this.#frames.length ? this.#end - this.#frames[this.#sent].at : 0;
  }

  push(samples) {
    this.#frames.push({ at: this.#end, samples });
    this.#end += samples.length / this.sampleRate;
    this.#forgetBefore(this.#end - KEPT_S);
  }

  /** The next frame to send, or undefined. */
  next() {
    return this.#frames[this.#sent++]?.samples ?? void this.#sent--;
  }

  /** Text up to here is final: its sound is no longer needed. */
  settle(until) {
    this.#forgetBefore(until);
  }

  /** Send all kept sound again, on a new connection. Returns where it begins. */
  rewind() {
    this.#sent = 0;
    return this.start;
  }

  #forgetBefore(until) {
    let gone = 0;
    while (gone < this.#frames.length - 1 && this.#frames[gone + 1].at <= until) gone++;
    this.#frames.splice(0, gone);
    this.#sent = Math.max(0, this.#sent - gone);
  }
}
