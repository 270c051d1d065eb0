// The microphone as 16-bit mono frames at whatever rate the machine records.

/** A microphone that cannot be had; the message is for people. */
export class MicrophoneError extends Error {}

/**
 * Opens the microphone. onFrame({samples: Int16Array, rms: 0…1}) is called about every 80 ms, and onLost(message)
 * once if the microphone goes away. Returns {sampleRate, close()}. Throws MicrophoneError.
 */
export async function openMicrophone({ onFrame, onLost }) {
  if (!navigator.mediaDevices) {
    throw new MicrophoneError("Browsers give the microphone only to https pages and to localhost. Files work here.");
  }
  // Made to be heard by a model, not by people: what browsers do against echo and noise costs words.
  const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
  let media;
  try {
    media = await navigator.mediaDevices.getUserMedia({ audio: wanted });
  } catch (error) {
    throw new MicrophoneError(explanation(error));
  }
  // At the rate of the device: Firefox refuses to connect a microphone to a context of another rate.
  const context = new AudioContext({ latencyHint: "interactive" });
  const close = () => {
    for (const track of media.getTracks()) track.stop();
    if (context.state !== "closed") context.close();
  };
  try {
    await context.resume();
    await context.audioWorklet.addModule(new URL("capture-worklet.js", import.meta.url));
    const worklet = new AudioWorkletNode(context, "capture");
    worklet.port.onmessage = ({ data }) => onFrame(data);
    // It is silent at its output, but only what leads to the speakers is sure to run.
    context.createMediaStreamSource(media).connect(worklet).connect(context.destination);
  } catch {
    close();
    throw new MicrophoneError("The sound of the microphone cannot be read in this browser.");
  }
  for (const track of media.getTracks()) {
    track.onended = () => {
      close();
      onLost("The microphone was unplugged or taken away.");
    };
  }
  return { sampleRate: context.sampleRate, close };
}

function explanation(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return "This page may not use the microphone. Allow it in the site settings beside the address, then start again.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "No microphone was found. Connect one and start again, or open a file.";
    case "NotReadableError":
    case "AbortError":
      return "The microphone is in use by another program.";
    default:
      return `The microphone cannot be opened: ${error.message}`;
  }
}
