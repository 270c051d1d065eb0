// The two menus: the spoken language and the language to translate to. They offer only what the model supports.

const STORED = "canary.languages";

/** onChange() is called when a person chooses. */
export class Languages {
  constructor({ spoken, target, onChange }) {
    this.spoken = spoken;
    this.target = target;
    this.languages = [];
    spoken.addEventListener("change", () => {
      this.#offerTargets(this.target.value);
      this.#remember();
      onChange();
    });
    target.addEventListener("change", () => {
      this.#remember();
      onChange();
    });
  }

  get language() {
    return this.spoken.value;
  }

  /** "" for no translation. */
  get targetLanguage() {
    return this.target.value;
  }

  name(code) {
    return this.languages.find((language) => language.code === code)?.name ?? "";
  }

  /** capabilities: the answer to GET /capabilities. */
  offer(capabilities) {
    this.languages = capabilities.languages.toSorted((a, b) => a.name.localeCompare(b.name));
    const options = this.languages.map(({ code, name }) => new Option(withOwnName(name, code), code));
    this.spoken.replaceChildren(new Option("Any language", "auto"), ...options);
    const stored = recall();
    const wanted = [stored.language, capabilities.default_language, "auto"];
    this.spoken.value = wanted.find((code) => code === "auto" || this.name(code));
    this.#offerTargets(stored.target);
  }

  #offerTargets(wanted) {
    const source = this.languages.find(({ code }) => code === this.spoken.value);
    const codes = source ? source.targets : this.languages.flatMap(({ targets }) => targets);
    const options = this.languages
      .filter(({ code }) => codes.includes(code))
      .map(({ code, name }) => new Option(withOwnName(name, code), code));
    this.target.replaceChildren(new Option("No translation", ""), ...options);
    this.target.value = codes.includes(wanted) ? wanted : "";
  }

  #remember() {
    try {
      localStorage.setItem(STORED, JSON.stringify({ language: this.language, target: this.targetLanguage }));
    } catch {
      // Private windows may refuse; then the choice is not remembered.
    }
  }
}

function recall() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

/** German · Deutsch */
function withOwnName(name, code) {
  const own = new Intl.DisplayNames([code], { type: "language" }).of(code);
  return own && own.toLowerCase() !== name.toLowerCase() ? `${name} · ${own}` : name;
}
