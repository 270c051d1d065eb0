// Says so when the page cannot start. A classic script: it runs even when a module does not load.
// main.js leaves the state "loading" once all its modules are there. Where this script fails too, style.css shows the
// same sentence after a while.

{
  const fail = (detail) => {
    if (document.body?.dataset.state !== "loading") return;
    document.body.dataset.state = "failed";
    document.getElementById("failed-detail").textContent = detail;
    document.querySelector("#status span").textContent = "Not loaded";
  };
  // In the capturing phase: what happens to a script element does not bubble.
  addEventListener(
    "error",
    ({ target, message }) => {
      if (target instanceof HTMLScriptElement) fail("One of its scripts is missing.");
      else if (message) fail(message);
    },
    true,
  );
  addEventListener("unhandledrejection", ({ reason }) => fail(String(reason)));
}
