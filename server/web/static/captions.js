// The lines on the screen: final ones in a log that is announced, unfinished ones below it.
//
// A line is {id, start, end, text, language, words?, translation: {text, language} | null}. An unfinished one has
// stable_chars, and so has its translation.

// This close to the end still counts as the end.
const NEAR_PX = 80;

/** Shows lines in `log` (role="log") and the unfinished one in `interim` (aria-hidden); follows the newest. */
export class Captions {
  #log;
  #interim;
  #latest;
  #lines = new Map();
  #unfinished = new Map();
  #following = true;
  #scrollY = 0;

  constructor({ log, interim, latest, onChange }) {
    this.#log = log;
    this.#interim = interim;
    this.#latest = latest;
    this.onChange = onChange;
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    addEventListener("resize", () => this.#keepUp());
    latest.addEventListener("click", () => this.follow());
  }

  /** Final lines, in order. */
  get lines() {
    return [...this.#lines.values()].filter((line) => line.text || line.translation?.text);
  }

  get isEmpty() {
    return !this.#log.childElementCount && !this.#interim.childElementCount;
  }

  /** Where the last line ends, in seconds. */
  get end() {
    return Math.max(0, ...[...this.#lines.values()].map((line) => line.end));
  }

  /** A final line. Only its language and its translation may still come, in a second call. */
  settle(line) {
    this.#unfinished.delete(line.id);
    this.#showUnfinished();
    const known = this.#lines.has(line.id);
    this.#lines.set(line.id, line);
    if (known) {
      // Only what is new, because everything added to a log is announced.
      const shown = this.#log.querySelector(`[data-id="${CSS.escape(line.id)}"]`);
      if (shown) complete(shown, line);
    } else if (line.text || line.translation?.text) {
      this.#log.append(row(line));
    }
    this.#changed();
  }

  /** An unfinished line; an empty one removes it. */
  revise(line) {
    if (line.text || line.translation?.text) this.#unfinished.set(line.id, line);
    else this.#unfinished.delete(line.id);
    this.#showUnfinished();
    this.#changed();
  }

  /** Remove unfinished lines: they will be written anew. */
  forgetUnfinished() {
    this.#unfinished.clear();
    this.#showUnfinished();
    this.#changed();
  }

  /** Keep unfinished lines as they are: nothing more will come. */
  settleUnfinished() {
    for (const { stable_chars, translation, ...line } of this.#unfinished.values()) {
      this.settle({ ...line, translation: translation && { text: translation.text, language: translation.language } });
    }
  }

  /** Empty the screen. Returns the lines, for `restore`. */
  clear() {
    const lines = this.lines;
    this.#lines.clear();
    this.#unfinished.clear();
    this.#log.replaceChildren();
    this.#interim.replaceChildren();
    this.follow();
    this.#changed();
    return lines;
  }

  restore(lines) {
    for (const line of lines) this.settle(line);
  }

  /** Keep the newest words in sight. */
  follow() {
    this.#following = true;
    this.#keepUp();
  }

  #showUnfinished() {
    this.#interim.replaceChildren(...[...this.#unfinished.values()].map(row));
  }

  #changed() {
    this.onChange(this);
    this.#keepUp();
  }

  #keepUp() {
    if (this.#following) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    this.#latest.hidden = this.#following;
  }

  #scrolled() {
    const below = document.documentElement.scrollHeight - innerHeight - scrollY;
    // Only people scroll up; the distance to the end also grows when a line is added.
    if (below < NEAR_PX) this.#following = true;
    else if (scrollY < this.#scrollY) this.#following = false;
    this.#scrollY = scrollY;
    this.#latest.hidden = this.#following;
  }
}

function row(line) {
  const element = make("div", "line");
  element.dataset.id = line.id;
  const time = make("time", "", clock(line.start));
  time.dateTime = `PT${line.start.toFixed(1)}S`;
  element.append(time, paragraph("text", line));
  if (line.translation) element.append(paragraph("translation", line.translation));
  return element;
}

/** Update the language and the translation of a line on the screen. */
function complete(element, line) {
  if (line.language) element.querySelector(".text").lang = line.language;
  const old = element.querySelector(".translation");
  if (!line.translation || old?.textContent === line.translation.text) return;
  const translation = paragraph("translation", line.translation);
  if (old) old.replaceWith(translation);
  else element.append(translation);
}

function paragraph(name, { text, language, stable_chars }) {
  const element = make("p", name);
  if (language) element.lang = language;
  let stable = text.slice(0, stable_chars ?? text.length);
  // The space between the two parts is not underlined.
  if (text[stable.length] === " ") stable += " ";
  if (stable) element.append(stable);
  if (stable.length < text.length) element.append(make("span", "tail", text.slice(stable.length)));
  return element;
}

function make(tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

/** 75.4 → 1:15 */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (value) => String(value).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  return minutes < 60
    ? `${minutes}:${two(whole % 60)}`
    : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}
