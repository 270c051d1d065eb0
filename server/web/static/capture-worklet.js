// Runs in the audio thread: any number of channels in, mono 16-bit frames of FRAME_S out.

const FRAME_S = 0.08;

class Capture extends AudioWorkletProcessor {
  #frame = new Int16Array(Math.round(sampleRate * FRAME_S));
  #filled = 0;
  #energy = 0;

  process([channels]) {
    // There are no channels before the microphone opens and after it closes.
    const length = channels.length ? channels[0].length : 0;
    for (let i = 0; i < length; i++) {
      let sample = 0;
      for (const channel of channels) sample += channel[i] / channels.length;
      this.#push(Math.max(-1, Math.min(1, sample)));
    }
    return true;
  }

  #push(sample) {
    this.#energy += sample * sample;
    this.#frame[this.#filled++] = Math.round(sample * 32767);
    if (this.#filled < this.#frame.length) return;
    const rms = Math.sqrt(this.#energy / this.#filled);
    this.port.postMessage({ samples: this.#frame, rms }, [this.#frame.buffer]);
    this.#frame = new Int16Array(this.#filled);
    this.#filled = 0;
    this.#energy = 0;
  }
}

registerProcessor("capture", Capture);
