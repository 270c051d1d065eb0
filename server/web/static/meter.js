// The last seconds of the microphone's level, as bars.

// Relative to full scale. Anything quieter is drawn as silence.
const FLOOR_DB = -60;
const BARS = 24;

export class Meter {
  #canvas;
  #levels = new Array(BARS).fill(0);

  constructor(canvas) {
    this.#canvas = canvas;
    this.draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Add the level of one frame: its root mean square, 0…1. */
  push(rms) {
    this.#levels.push(level(rms));
    this.#levels.shift();
    this.#canvas.setAttribute("aria-valuenow", Math.round(this.#levels.at(-1) * 100));
    this.draw();
  }

  reset() {
    this.#levels.fill(0);
    this.#canvas.setAttribute("aria-valuenow", 0);
    this.draw();
  }

  draw() {
    const { width, height } = this.#canvas;
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(this.#canvas).color;
    const step = width / BARS;
    this.#levels.forEach((value, i) => {
      const tall = Math.max(step / 2, value * height);
      context.globalAlpha = value ? 0.35 + (0.65 * i) / BARS : 0.25;
      context.beginPath();
      context.roundRect(i * step + step / 4, (height - tall) / 2, step / 2, tall, step / 4);
      context.fill();
    });
  }
}

/** 0…1 between the floor and full scale, in decibels. */
export function level(rms) {
  return rms > 0 ? Math.max(0, Math.min(1, 1 - (20 * Math.log10(rms)) / FLOOR_DB)) : 0;
}
