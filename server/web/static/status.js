// What the page is doing, in a few words above; what went wrong, in a sentence below.

const ACTION_S = 12;
const CONFIRMATION_S = 2.5;

export class Status {
  #line = document.getElementById("status");
  #announcer = document.getElementById("announcer");
  #notice = document.getElementById("notice");
  #action = document.getElementById("notice-action");
  #timer = 0;

  constructor() {
    document.getElementById("notice-close").addEventListener("click", () => this.dismiss());
  }

  /** tone: "wait", "ready", "live", "slow" or "error". Read out only where `aloud`: numbers that run are not. */
  show(tone, words, aloud = true) {
    this.#line.dataset.tone = tone;
    this.#line.lastElementChild.textContent = words;
    if (aloud && this.#announcer.textContent !== words) this.#announcer.textContent = words;
  }

  /** A sentence that stays until it is dismissed. kind: "error" or "hint". */
  problem(sentence, kind = "error") {
    this.#tell(sentence, kind);
  }

  /** Something done, said in passing. */
  confirm(sentence) {
    this.#tell(sentence, "hint");
    this.#timer = setTimeout(() => this.dismiss(), CONFIRMATION_S * 1000);
  }

  /** Something done that can be undone for a while. */
  offer(sentence, label, action) {
    this.#tell(sentence, "hint");
    this.#action.textContent = label;
    this.#action.hidden = false;
    this.#action.onclick = () => {
      this.dismiss();
      action();
    };
    this.#timer = setTimeout(() => this.dismiss(), ACTION_S * 1000);
  }

  /** Returns whether there was something to dismiss. */
  dismiss() {
    clearTimeout(this.#timer);
    const shown = !this.#notice.hidden;
    this.#notice.hidden = true;
    this.#notice.firstElementChild.textContent = "";
    this.#action.hidden = true;
    return shown;
  }

  #tell(sentence, kind) {
    this.dismiss();
    this.#notice.dataset.kind = kind;
    this.#notice.hidden = false;
    this.#notice.firstElementChild.textContent = sentence;
  }
}
