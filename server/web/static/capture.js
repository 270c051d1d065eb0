// The microphone as 16-bit mono frames, at the sample rate of the device.

const WORKLET = new URL("capture-worklet.js", import.meta.url);

/** The microphone cannot be used. The message is for people; `needsFile` if only files will work here. */
export class MicrophoneError extends Error {
  constructor(message, { needsFile = false } = {}) {
    super(message);
    this.needsFile = needsFile;
  }
}

/**
 * Opens the microphone. onFrame({samples: Int16Array, rms: 0…1}) is called about every 80 ms, and onLost(message)
 * once if the microphone goes away. Returns {sampleRate, close()}. Throws MicrophoneError.
 */
export async function openMicrophone({ onFrame, onLost }) {
  if (!navigator.mediaDevices) {
    throw new MicrophoneError(
      "Browsers allow the microphone only on https pages and on localhost. You can still open a file.",
      { needsFile: true },
    );
  }
  // Loaded before the microphone opens, so that no sound is missed. At the rate of the device, because Firefox refuses
  // to connect a microphone to a context of another rate.
  const context = new AudioContext({ latencyHint: "interactive" });
  let media;
  const close = () => {
    for (const track of media?.getTracks() ?? []) track.stop();
    if (context.state !== "closed") context.close();
  };
  try {
    const worklet = await loadWorklet(context);
    worklet.port.onmessage = ({ data }) => onFrame(data);
    media = await ask();
    // The worklet outputs silence, but only what leads to the speakers is sure to run.
    context.createMediaStreamSource(media).connect(worklet).connect(context.destination);
  } catch (error) {
    close();
    if (error instanceof MicrophoneError) throw error;
    throw new MicrophoneError("This browser cannot read the microphone's sound. You can still open a file.", {
      needsFile: true,
    });
  }
  for (const track of media.getTracks()) {
    track.onended = () => {
      close();
      onLost("The microphone was disconnected.");
    };
  }
  return { sampleRate: context.sampleRate, close };
}

async function loadWorklet(context) {
  try {
    await context.audioWorklet.addModule(WORKLET);
  } catch {
    throw new MicrophoneError("A part of this page did not load (capture-worklet.js). Is the server still running?");
  }
  await context.resume();
  return new AudioWorkletNode(context, "capture");
}

async function ask() {
  // For a model, not for people: echo cancellation and noise suppression cost words.
  const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: wanted });
  } catch (error) {
    throw new MicrophoneError(explanation(error));
  }
}

function explanation(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return "This page may not use the microphone. Allow it in the browser's site settings, then try again.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "No microphone was found. Connect one and try again, or open a file.";
    case "NotReadableError":
    case "AbortError":
      return "The microphone is in use by another program. Close that program, then try again.";
    default:
      return `The microphone could not be opened: ${error.message}`;
  }
}
