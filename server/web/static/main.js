// The page: buttons and keys on one side, the microphone, files and captions on the other.

import { transcribeBeside } from "./beside.js";
import { Captions, clock } from "./captions.js";
import { offerDownload } from "./download.js";
import { durationOf } from "./files.js";
import { listen } from "./keyboard.js";
import { Languages } from "./languages.js";
import { Listening } from "./listening.js";
import { Meter } from "./meter.js";
import { address, capabilities, key, setKey, whyUnreachable } from "./server.js";
import { Status } from "./status.js";
import { toText } from "./subtitles.js";

const $ = (id) => document.getElementById(id);

const status = new Status();
addEventListener("error", ({ error, message }) => failed(error?.message ?? message));
addEventListener("unhandledrejection", ({ reason }) => failed(reason?.message ?? String(reason)));

const meter = new Meter($("meter"));
const languages = new Languages({ spoken: $("language"), target: $("target"), onChange: languagesChanged });
const captions = new Captions({ log: $("log"), interim: $("interim"), latest: $("latest"), onChange: showWhatCanBeDone });

// What is going on, at most one of them: AbortControllers of a microphone and of a file that are being opened.
let starting = null;
let listening = null;
let opening = null;

let able = null;
let awake = null;
let restart = false;
let heard = "";
let count = 0;
// Functions that withdraw notices which are no longer true.
let withdrawSilent = () => {};
let withdrawUnreachable = () => {};

// --- the microphone

async function start() {
  if (!able || document.body.dataset.state !== "idle") return;
  status.dismiss();
  enter("starting");
  heard = "";
  status.show("wait", "Waiting for the microphone");
  // Later recordings continue where the lines so far end.
  const [session, offset] = [++count, captions.end];
  const moved = (seconds) => offset + seconds;
  const line = (result) => ({
    ...result,
    id: `${session}.${result.id}`,
    start: moved(result.start),
    end: moved(result.end),
    words: result.words?.map((word) => ({ ...word, start: moved(word.start), end: moved(word.end) })),
  });
  const { signal } = (starting = new AbortController());
  try {
    const begun = await Listening.begin(
      { language: languages.language, targetLanguage: languages.targetLanguage },
      {
        onState: liveState,
        onResult: (result) => {
          showHeardLanguage(result.language);
          if (result.is_final) captions.settle(line(result));
          else captions.revise(line(result));
        },
        onForget: () => captions.forgetUnfinished(),
        onLag: (seconds) => liveState("live", seconds),
        onProblem: (message) => status.problem(message),
        onUnreachable: unreachable,
        onClosed: stopped,
        onLevel: (rms) => meter.push(rms),
        onElapsed: (seconds) => ($("elapsed").textContent = clock(seconds)),
        onSilent: () => (withdrawSilent = status.hint("Nothing can be heard. Is the microphone muted, or is another one selected?")),
        onSound: () => withdrawSilent(),
      },
      signal,
    );
    starting = null;
    listening = begun;
    enter("live");
    keepAwake();
  } catch (error) {
    // Nothing waits for it any more, and another one may have begun.
    if (signal.aborted) return;
    starting = null;
    rest();
    status.problem(error.message, error.needsFile ? openFile : tryAgain);
  }
}

/** Stop the microphone or the file. While the last words are being written, a second call stops without them. */
function stop() {
  if (starting) {
    starting.abort();
    starting = null;
    rest();
  }
  opening?.abort();
  if (restart) restart = false;
  else listening?.stop();
}

function liveState(state, lag = 0) {
  // The last words are still being written, however they come.
  if (state === "live" && document.body.dataset.state === "stopping") return;
  if (state === "live" && lag) return status.show("slow", `${lag.toFixed(1)} s behind`, false);
  const [tone, words] = {
    connecting: ["wait", "Connecting; what you say is kept"],
    live: ["live", heard ? `Listening · ${heard}` : "Listening"],
    reconnecting: ["slow", "Reconnecting; what you say is kept"],
    stopping: ["wait", "Writing the last words"],
    closed: ["ready", "Ready"],
  }[state];
  status.show(tone, words);
  if (state === "live" || state === "closed") withdrawUnreachable();
  if (state === "stopping") enter("stopping");
}

/** The live connection failed more than once; the session goes on trying. */
async function unreachable() {
  const session = listening;
  const { message, needsKey } = await whyUnreachable();
  if (!session || session !== listening || !session.isUnreachable) return;
  const retry = () => session.retry();
  withdrawUnreachable = status.problem(
    `${message} What you said is kept while the page tries again.`,
    needsKey ? { label: "Enter a key", action: () => askForKey().then(retry) } : { label: "Try now", action: retry },
  );
}

/** Show which language is heard, if the model detects it. */
function showHeardLanguage(code) {
  if (languages.language !== "auto" || !code || languages.name(code) === heard) return;
  heard = languages.name(code);
  liveState("live");
}

function stopped(message) {
  listening = null;
  awake?.release();
  awake = null;
  withdrawSilent();
  captions.settleUnfinished();
  meter.reset();
  rest();
  if (message) status.problem(message, tryAgain);
  else if (restart) start();
  restart = false;
}

// --- languages

/** While listening, the words so far are finished in the old languages, and the next ones come in the new. */
function languagesChanged() {
  showColumns();
  if (!listening) return;
  restart = true;
  listening.stop();
}

/** Two columns if a translation is selected or on the screen. */
function showColumns() {
  const both = Boolean(languages.targetLanguage) || captions.lines.some((line) => line.translation?.text);
  document.body.classList.toggle("translated", both);
}

// --- files

async function open(files) {
  if (!files.length || !able) return;
  if (document.body.dataset.state !== "idle") {
    return void status.hint("Stop first, then open the recording.", { label: "Stop", action: stop });
  }
  const [file] = files;
  status.dismiss();
  if (file.size > able.max_upload_mb * 1e6) {
    return void status.problem(`${file.name} is larger than ${Math.round(able.max_upload_mb)} MB, this server's limit.`, openFile);
  }
  const before = captions.clear();
  opening = new AbortController();
  enter("file");
  showFile(file.name, null, "Uploading");
  status.show("wait", "Transcribing");
  // Not awaited: it may take long, and only the progress needs it.
  let duration = null;
  durationOf(file).then((seconds) => (duration = seconds));
  const session = ++count;
  try {
    await transcribeBeside(address("transcribe"), file, {
      key: key(),
      language: languages.language,
      targetLanguage: languages.targetLanguage,
      signal: opening.signal,
      onUpload: (share) => showFile(file.name, share < 1 ? share : null, share < 1 ? "Uploading" : "Transcribing"),
      onLine: (line) => captions.settle({ ...line, id: `${session}.${line.id}` }),
      onTime: (s) => duration && showFile(file.name, Math.min(1, s / duration), `${clock(s)} of ${clock(duration)}`),
    });
    if (!captions.lines.length) status.hint(`No speech was found in ${file.name}.`, openFile);
    else if (files.length > 1) status.hint(`Only ${file.name} was opened: the page takes one recording at a time.`, openFile);
  } catch (error) {
    if (error.name !== "AbortError") status.problem(`${file.name}: ${error.message}`, afterFailure(error, file));
    if (captions.isEmpty) captions.restore(before);
  }
  opening = null;
  $("file").hidden = true;
  rest();
}

/** The next step after a FileError. */
function afterFailure({ status, canRetry }, file) {
  const again = () => open([file]);
  if (status === 401) return { label: "Enter a key", action: () => askForKey().then(again) };
  return canRetry ? { label: "Try again", action: again } : openFile;
}

function showFile(name, share, phase) {
  $("file").hidden = false;
  $("file-name").textContent = name;
  $("file-phase").textContent = phase;
  if (share === null) $("file-progress").removeAttribute("value");
  else $("file-progress").value = share;
}

// --- what has been written

async function copy() {
  if (!captions.lines.length) return;
  const which = captions.lines.some((line) => line.translation?.text) ? "both" : "text";
  try {
    await navigator.clipboard.writeText(toText(captions.lines, which));
    status.confirm("Copied.");
  } catch {
    status.problem("The browser does not allow this page to copy.", { label: "Download", action: actions.download });
  }
}

function clear() {
  if (listening || opening || !captions.lines.length) return;
  const lines = captions.clear();
  if (document.activeElement === document.body) $("start").focus();
  status.undoable("Cleared.", () => captions.restore(lines));
}

// --- what the page looks like

function enter(state) {
  document.body.dataset.state = state;
  const busy = state !== "idle";
  const label = { starting: "Starting", live: "Stop", stopping: "Stopping", file: "Cancel" }[state] ?? "Start";
  $("start").lastElementChild.textContent = label;
  // Never disabled while in use, or it would lose the focus.
  $("start").disabled = !able;
  document.title = state === "live" ? "● Canary" : "Canary";
  for (const select of [$("language"), $("target")]) select.disabled = !able || (busy && state !== "live");
  showWhatCanBeDone();
}

function showWhatCanBeDone() {
  const written = captions.lines.length > 0;
  const idle = document.body.dataset.state === "idle";
  for (const id of ["copy", "download"]) $(id).disabled = !written;
  $("clear").disabled = !written || !idle;
  $("open").disabled = !able || !idle;
  $("welcome").hidden = !["waiting", "idle"].includes(document.body.dataset.state) || !captions.isEmpty;
  showColumns();
}

function rest() {
  enter("idle");
  status.show("ready", "Ready");
}

/** Something that should not happen. */
function failed(message) {
  status.problem(`Something on this page failed: ${message}. Save your text, then reload the page.`, reload);
}

function resize(by) {
  const root = document.documentElement;
  const size = Math.min(1.75, Math.max(0.6, Number(root.style.getPropertyValue("--zoom") || 1) + by));
  root.style.setProperty("--zoom", size.toFixed(2));
  captions.follow();
}

async function keepAwake() {
  try {
    const lock = await navigator.wakeLock?.request("screen");
    if (listening && !awake) awake = lock;
    else lock?.release();
  } catch {
    // Listening works without it.
  }
}

function askForKey() {
  $("key").showModal();
  return new Promise((resolve) => {
    $("key").onclose = () => {
      setKey($("key-value").value);
      resolve();
    };
  });
}

// --- buttons and keys

const openFile = { label: "Open a file", action: () => actions.open() };
const tryAgain = { label: "Try again", action: start };
const reload = { label: "Reload", action: () => location.reload() };

const isBusy = () => Boolean(starting || listening || opening);
const toggle = () => (isBusy() ? stop() : start());
const actions = {
  copy,
  clear,
  start: toggle,
  download: () => captions.lines.length && offerDownload($("export"), captions.lines, able.subtitles),
  open: () => !$("open").disabled && $("picker").click(),
  help: () => $("keys").showModal(),
  smaller: () => resize(-0.1),
  larger: () => resize(0.1),
};
for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
$("picker").addEventListener("change", () => {
  open([...$("picker").files]);
  $("picker").value = "";
});
listen(
  {
    " ": () => !$("start").disabled && toggle(),
    o: actions.open,
    c: copy,
    d: actions.download,
    x: clear,
    "?": actions.help,
    "+": actions.larger,
    "=": actions.larger,
    "-": actions.smaller,
    End: () => captions.follow(),
    Escape: () => {
      status.dismiss();
      stop();
    },
  },
  $("single-keys"),
);

let over = 0;
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
const drag = (change) => (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  over = Math.max(0, over + change);
  $("drop").hidden = !over;
};
addEventListener("dragenter", drag(1));
addEventListener("dragleave", drag(-1));
addEventListener("dragover", drag(0));
addEventListener("drop", (event) => {
  drag(-Infinity)(event);
  open([...(event.dataTransfer?.files ?? [])]);
});
addEventListener("beforeunload", (event) => listening && event.preventDefault());

// --- begin

enter("waiting");
$("help").disabled = false;
status.show("wait", "Connecting");
let withdrawTrouble = () => {};
able = await capabilities({
  onLoading: () => {
    withdrawTrouble();
    status.show("wait", "Loading the model");
  },
  onTrouble: (sentence, retry) => {
    status.show("wait", "Waiting for the server");
    withdrawTrouble = status.problem(`${sentence} The page keeps trying.`, { label: "Try now", action: retry });
  },
  askForKey,
});
withdrawTrouble();
languages.offer(able);
$("model").textContent = `Model: ${able.model}`;
rest();
