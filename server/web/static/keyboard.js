// Single keys for what the buttons do. They can be turned off: speech input and switches may type them by accident.

const STORED = "canary.single-keys";

/** keys: {" ": action, o: action, …}. `allowed` is a checkbox that turns them off, except Escape. */
export function listen(keys, allowed) {
  allowed.checked = recall();
  allowed.addEventListener("change", () => remember(allowed.checked));
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]") || isTypedInto(event.target, event.key)) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = keys[name];
    if (!action || (!allowed.checked && name !== "Escape")) return;
    event.preventDefault();
    action();
  });
}

/** Whether the focused element uses the key itself. */
function isTypedInto(element, key) {
  if (element.closest("input, select, textarea")) return key !== "Escape";
  return key === " " && Boolean(element.closest("button, a, summary"));
}

function recall() {
  try {
    return localStorage.getItem(STORED) !== "off";
  } catch {
    return true;
  }
}

function remember(on) {
  try {
    localStorage.setItem(STORED, on ? "on" : "off");
  } catch {
    // Private windows may refuse; then the choice is not remembered.
  }
}
