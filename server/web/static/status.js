// What the page is doing, in a few words at the top; what went wrong, in a sentence at the bottom.

const UNDO_S = 12;
const CONFIRMATION_S = 2.5;

export class Status {
  #line = document.getElementById("status");
  #announcer = document.getElementById("announcer");
  #notice = document.getElementById("notice");
  #sentence = document.querySelector("#notice [role=alert]");
  #action = document.getElementById("notice-action");
  #timer = 0;
  #shown = 0;

  constructor() {
    document.getElementById("notice-close").addEventListener("click", () => this.dismiss());
  }

  /** tone: "wait", "ready", "live" or "slow". Announced only where `aloud`: running numbers are not. */
  show(tone, words, aloud = true) {
    this.#line.dataset.tone = tone;
    this.#line.lastElementChild.textContent = words;
    if (aloud && this.#announcer.textContent !== words) this.#announcer.textContent = words;
  }

  /**
   * What went wrong, until it is dismissed. `next` is the next step: {label, action}. Returns a function that takes the
   * notice away if it is still there.
   */
  problem(sentence, next = null) {
    return this.#tell("error", sentence, next);
  }

  /** Something to know, until it is dismissed. Returns as `problem` does. */
  hint(sentence, next = null) {
    return this.#tell("hint", sentence, next);
  }

  /** A brief confirmation. */
  confirm(sentence) {
    this.#tell("hint", sentence, null);
    this.#timer = setTimeout(() => this.dismiss(), CONFIRMATION_S * 1000);
  }

  /** Something done that can be undone for a while. */
  undoable(sentence, undo) {
    this.#tell("hint", sentence, { label: "Undo", action: undo });
    this.#timer = setTimeout(() => this.dismiss(), UNDO_S * 1000);
  }

  dismiss() {
    clearTimeout(this.#timer);
    // A hidden button loses the focus; keyboard and screen reader users would start again at the top.
    if (this.#notice.contains(document.activeElement)) document.getElementById("start").focus();
    this.#notice.hidden = true;
    this.#sentence.textContent = "";
    this.#action.hidden = true;
  }

  #tell(kind, sentence, next) {
    this.dismiss();
    this.#notice.dataset.kind = kind;
    this.#notice.hidden = false;
    this.#sentence.textContent = sentence;
    this.#action.hidden = !next;
    this.#action.textContent = next?.label ?? "";
    this.#action.onclick = () => {
      this.dismiss();
      next.action();
    };
    const shown = ++this.#shown;
    return () => {
      if (shown === this.#shown) this.dismiss();
    };
  }
}
