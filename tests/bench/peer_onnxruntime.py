"""onnxruntime's side of the comparison: NeMo's modules by `export_onnx.py`, in float32 or 8 bits."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
from worker import NEVER, Job, Run, Stages, work

HOP, N_FFT, PREEMPHASIS = 160, 512, 0.97


def load(folder: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    options.inter_op_num_threads = 1
    encoder = onnxruntime.InferenceSession(folder / "encoder.onnx", options)
    decoder = onnxruntime.InferenceSession(folder / "decoder.onnx", options)
    constants = dict(np.load(folder / "features.npz"))
    memory_shape = next(each.shape for each in decoder.get_inputs() if each.name == "memory")
    mel_name, length_name = (each.name for each in encoder.get_inputs())

    def run(job: Job, stages: Stages) -> list[list[int]]:
        rows = len(job.waveforms)
        with stages("features"):
            mels = [log_mel(waveform, constants) for waveform in job.waveforms]
            most = max(mel.shape[1] for mel in mels)
            mel = np.stack([np.pad(mel, [(0, 0), (0, most - mel.shape[1])]) for mel in mels])
        with stages("encode"):
            frames = np.array([len(waveform) // HOP for waveform in job.waveforms])
            vectors, steps = encoder.run(None, {mel_name: mel, length_name: frames})
            states = vectors.transpose(0, 2, 1) @ constants["weight"].T + constants["bias"]
            mask = (np.arange(states.shape[1]) < steps[:, None]).astype(np.float32)
        with stages("decode"):
            memory = np.zeros((memory_shape[0], rows, 0, memory_shape[3]), np.float32)
            tokens, written = np.array([job.prompt] * rows), []
            for _ in range(max(job.tokens)):
                asked = {"tokens": tokens, "states": states, "mask": mask, "memory": memory}
                scores, memory = decoder.run(None, asked)
                scores[:, job.banned] = NEVER
                tokens = scores.argmax(-1)[:, None]
                written.append(tokens)
        return np.concatenate(written, axis=1).tolist()

    return run


def log_mel(waveform: np.ndarray, constants: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) → (bands, N // 160 + 1), the last frame zero, as NeMo's preprocessor gives it."""
    sound = np.append(waveform[:1], waveform[1:] - PREEMPHASIS * waveform[:-1])
    padded = np.pad(sound, N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    missing = N_FFT - len(constants["window"])
    window = np.pad(constants["window"], (missing // 2, missing - missing // 2))
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    mel = np.log(constants["fb"] @ power.T + 2.0**-24)
    valid = mel[:, : len(waveform) // HOP]
    normal = (valid - valid.mean(1, keepdims=True)) / (valid.std(1, ddof=1, keepdims=True) + 1e-5)
    return np.pad(normal, [(0, 0), (0, mel.shape[1] - valid.shape[1])]).astype(np.float32)


if __name__ == "__main__":
    work(load)
