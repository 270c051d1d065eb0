// The page: buttons and keys on one side, the microphone, files and captions on the other.

import { transcribeBeside } from "./beside.js";
import { Captions, clock } from "./captions.js";
import { offerDownload } from "./download.js";
import { durationOf } from "./files.js";
import { listen } from "./keyboard.js";
import { Languages } from "./languages.js";
import { Listening } from "./listening.js";
import { Meter } from "./meter.js";
import { address, capabilities, key, setKey } from "./server.js";
import { Status } from "./status.js";
import { toText } from "./subtitles.js";

const $ = (id) => document.getElementById(id);

const status = new Status();
const meter = new Meter($("meter"));
const languages = new Languages({ spoken: $("language"), target: $("target"), onChange: languagesChanged });
const captions = new Captions({ log: $("log"), interim: $("interim"), latest: $("latest"), onChange: showWhatCanBeDone });

// What is going on: at most one of them.
let listening = null;
let opening = null;
let able = null;
let awake = null;
let restart = false;
let heard = "";
let count = 0;

// --- the microphone

async function start() {
  if (!able || document.body.dataset.state !== "idle") return;
  status.dismiss();
  enter("starting");
  heard = "";
  status.show("wait", "Asking for the microphone");
  // Later recordings go on in time where the lines so far end.
  const [session, offset] = [++count, captions.end];
  const moved = (seconds) => offset + seconds;
  const line = (result) => ({
    ...result,
    id: `${session}.${result.id}`,
    start: moved(result.start),
    end: moved(result.end),
    words: result.words?.map((word) => ({ ...word, start: moved(word.start), end: moved(word.end) })),
  });
  try {
    listening = await Listening.begin(
      { language: languages.language, targetLanguage: languages.targetLanguage },
      {
        onState: liveState,
        onResult: (result) => {
          tellLanguage(result.language);
          if (result.is_final) captions.settle(line(result));
          else captions.revise(line(result));
        },
        onForget: () => captions.forgetUnfinished(),
        onLag: (seconds) => liveState("live", seconds),
        onProblem: (message) => status.problem(message),
        onClosed: stopped,
        onLevel: (rms) => meter.push(rms),
        onElapsed: (seconds) => ($("elapsed").textContent = clock(seconds)),
        onSilent: () => status.problem("Nothing can be heard: the microphone may be muted, or another one chosen.", "hint"),
      },
    );
    enter("live");
    keepAwake();
  } catch (error) {
    enter("idle");
    ready();
    status.problem(error.message);
  }
}

function stop() {
  restart = false;
  if (opening) opening.abort();
  listening?.stop();
}

function liveState(state, lag = 0) {
  if (state === "live" && lag) return status.show("slow", `${lag.toFixed(1)} s behind`, false);
  const [tone, words] = {
    connecting: ["wait", "Connecting"],
    live: ["live", heard ? `Listening · ${heard}` : "Listening"],
    reconnecting: ["slow", "Reconnecting; what you say is kept"],
    stopping: ["wait", "Writing the last words"],
    closed: ["ready", "Ready"],
  }[state];
  status.show(tone, words);
  if (state === "stopping") enter("stopping");
}

/** Which language is heard, where that was left to the model. */
function tellLanguage(code) {
  if (languages.language !== "auto" || !code || languages.name(code) === heard) return;
  heard = languages.name(code);
  liveState("live");
}

function stopped(message) {
  listening = null;
  awake?.release();
  awake = null;
  captions.forgetUnfinished();
  meter.reset();
  enter("idle");
  ready();
  if (message) status.problem(message);
  else if (restart) start();
  restart = false;
}

// --- languages

/** While listening, the words so far are finished in the old languages and the next ones come in the new. */
function languagesChanged() {
  showColumns();
  if (!listening) return;
  restart = true;
  listening.stop();
}

/** Two columns where a translation is wanted or there. */
function showColumns() {
  const both = Boolean(languages.targetLanguage) || captions.lines.some((line) => line.translation?.text);
  document.body.classList.toggle("translated", both);
}

// --- files

async function open(files) {
  if (!files.length || !able) return;
  if (document.body.dataset.state !== "idle") {
    return status.problem("Stop what is going on first, then open the recording.", "hint");
  }
  const [file] = files;
  status.dismiss();
  if (file.size > able.max_upload_mb * 1e6) {
    return status.problem(`${file.name} is larger than ${Math.round(able.max_upload_mb)} MB, the most that this server takes.`);
  }
  const before = captions.clear();
  opening = new AbortController();
  enter("file");
  showFile(file.name, null, "Sending");
  status.show("wait", "Transcribing");
  // Nobody waits for that: it may take long, and only the progress needs it.
  let duration = null;
  durationOf(file).then((seconds) => (duration = seconds));
  const session = ++count;
  try {
    await transcribeBeside(address("transcribe"), file, {
      key: key(),
      language: languages.language,
      targetLanguage: languages.targetLanguage,
      signal: opening.signal,
      onUpload: (share) => showFile(file.name, share < 1 ? share : null, share < 1 ? "Sending" : "Listening to it"),
      onLine: (line) => captions.settle({ ...line, id: `${session}.${line.id}` }),
      onTime: (s) => duration && showFile(file.name, Math.min(1, s / duration), `${clock(s)} of ${clock(duration)}`),
    });
    if (!captions.lines.length) status.problem(`No words were heard in ${file.name}.`, "hint");
  } catch (error) {
    if (error.name !== "AbortError") status.problem(`${file.name}: ${error.message}`);
    if (captions.isEmpty) captions.restore(before);
  }
  opening = null;
  $("file").hidden = true;
  enter("idle");
  ready();
  if (files.length > 1) status.problem(`One recording at a time: this was ${file.name}.`, "hint");
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
    status.problem("The browser does not let this page copy. Download the text instead.");
  }
}

function clear() {
  if (listening || opening || !captions.lines.length) return;
  const lines = captions.clear();
  if (document.activeElement === document.body) $("start").focus();
  status.offer("Cleared.", "Undo", () => captions.restore(lines));
}

// --- what the page looks like

function enter(state) {
  document.body.dataset.state = state;
  const busy = state !== "idle";
  const label = { starting: "Starting", live: "Stop", stopping: "Stopping", file: "Cancel" }[state] ?? "Start";
  $("start").lastElementChild.textContent = label;
  // Never disabled while in use: the focus would be lost.
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
  $("welcome").hidden = !idle || !captions.isEmpty;
  showColumns();
}

function ready() {
  status.show("ready", "Ready");
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
    // A dark screen is no reason not to listen.
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

// --- hands

const toggle = () => (listening || opening ? stop() : start());
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
    Escape: () => status.dismiss() || stop(),
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

able = await capabilities({
  onWait: (reason) => status.show("wait", reason),
  askForKey,
});
languages.offer(able);
$("model").textContent = `Model: ${able.model}`;
enter("idle");
ready();
