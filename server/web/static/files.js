// A recording through POST /transcribe: how far the upload is, then segments as they are ready.

/** The recording could not be transcribed. The message is for people; `status` is HTTP's, 0 without an answer. */
export class FileError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  /** Whether the same recording may work another time. */
  get canRetry() {
    return this.status < 400 || this.status === 429 || this.status >= 500;
  }
}

/**
 * Sends the file and calls onUpload(share 0…1) and onSegment(segment). Resolves with the whole transcript; rejects
 * with FileError, or with an AbortError when `signal` aborts.
 */
export function transcribe(url, file, { key, language, targetLanguage, signal, onUpload, onSegment }) {
  const form = new FormData();
  form.append("language", language);
  if (targetLanguage) form.append("target_language", targetLanguage);
  form.append("timestamps", "segment");
  form.append("stream", "true");
  form.append("file", file, file.name);
  return new Promise((resolve, reject) => {
    // Not fetch, which does not report the progress of an upload.
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.setRequestHeader("accept", "text/event-stream");
    if (key) request.setRequestHeader("authorization", `Bearer ${key}`);
    request.upload.onprogress = ({ loaded, total }) => onUpload(total ? loaded / total : 0);
    request.upload.onload = () => onUpload(1);
    let read = 0;
    const take = () => {
      if (request.status !== 200) return;
      const end = request.responseText.lastIndexOf("\n\n") + 2;
      for (const event of parseEvents(request.responseText.slice(read, Math.max(read, end)))) {
        if (event.name === "segment") onSegment(event.data);
        if (event.name === "done") resolve(event.data);
        if (event.name === "error") reject(new FileError(event.data.error.message, 200));
      }
      read = Math.max(read, end);
    };
    request.onprogress = take;
    request.onload = () => {
      take();
      reject(new FileError(refusal(request), request.status));
    };
    request.onerror = () => reject(new FileError("The connection was lost. Is the server still running?"));
    request.onabort = () => reject(new DOMException("Cancelled.", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** Seconds of sound in the file, or null where the browser cannot tell. */
export function durationOf(file) {
  return new Promise((resolve) => {
    const address = URL.createObjectURL(file);
    const player = new Audio();
    const tell = (seconds) => {
      URL.revokeObjectURL(address);
      resolve(Number.isFinite(seconds) && seconds > 0 ? seconds : null);
    };
    player.onloadedmetadata = () => tell(player.duration);
    player.onerror = () => tell(null);
    player.preload = "metadata";
    player.src = address;
  });
}

/** Whole server-sent events as [{name, data}]. */
export function parseEvents(text) {
  const events = [];
  for (const block of text.split("\n\n")) {
    let name = "message";
    const data = [];
    for (const row of block.split("\n")) {
      if (row.startsWith("event:")) name = row.slice(6).trim();
      if (row.startsWith("data:")) data.push(row.slice(5).trimStart());
    }
    if (data.length) events.push({ name, data: JSON.parse(data.join("\n")) });
  }
  return events;
}

function refusal(request) {
  try {
    return JSON.parse(request.responseText).error.message;
  } catch {
    return request.status === 200 ? "The server stopped before the end." : `The server answered with status ${request.status}.`;
  }
}
