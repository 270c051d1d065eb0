"""onnxruntime's side of the comparison: a Canary's modules by `export_onnx_canary.py`, in float32 or 8 bits.

The option says which decoder: "cached" has a KV cache; "nemo" is NeMo's own export, which has none.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, OrtValue, SessionOptions
from worker import HOP, NEVER, Job, Run, Stages, log_mel, work

# Encoder vectors (B, D, T) and their mask (B, T) → a function of the next tokens (B, S): the scores (B, V) after them.
Decoder = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def load(folder: Path, decoder: str) -> Run:
    encoder = session(folder / "encoder.onnx")
    constants = dict(np.load(folder / "features.npz"))
    mel_name, length_name = (each.name for each in encoder.get_inputs())
    started = {"cached": cached, "nemo": recomputing}[decoder](folder, constants)

    def run(job: Job, stages: Stages) -> list[list[int]]:
        with stages("features"):
            mels = [log_mel(waveform, constants) for waveform in job.waveforms]
        with stages("encode"):
            # In turn: on a CPU that is faster than together.
            frames = [np.array([len(waveform) // HOP]) for waveform in job.waveforms]
            asked = [{mel_name: mel[None], length_name: n} for mel, n in zip(mels, frames, strict=True)]
            encoded = [vectors[0, :, : steps[0]] for vectors, steps in (encoder.run(None, each) for each in asked)]
            vectors, mask = padded(encoded)
        with stages("decode"):
            step, tokens, written = started(vectors, mask), np.array([job.prompt] * len(encoded)), []
            for _ in range(max(job.tokens)):
                scores = step(tokens)
                scores[:, job.banned] = NEVER
                tokens = scores.argmax(-1)[:, None]
                written.append(tokens)
        return np.concatenate(written, axis=1).tolist()

    return run


def session(path: Path) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    options.inter_op_num_threads = 1
    return InferenceSession(path, options)


def padded(encoded: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each (D, T) → (B, D, T) with zeros on the right, and a mask (B, T) of what is not padding."""
    most = max(each.shape[1] for each in encoded)
    vectors = np.stack([np.pad(each, [(0, 0), (0, most - each.shape[1])]) for each in encoded])
    return vectors, np.array([[t < each.shape[1] for t in range(most)] for each in encoded], np.float32)


def cached(folder: Path, _: dict[str, np.ndarray]) -> Decoder:
    cross, decoder = session(folder / "cross.onnx"), session(folder / "cached.onnx")
    past = {each.name: each.shape for each in decoder.get_inputs() if each.name.startswith(("keys", "values"))}

    def started(vectors: np.ndarray, mask: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        heard = cross.run_with_ort_values(None, {"vectors": OrtValue.ortvalue_from_numpy(vectors)})
        names = [each.name for each in cross.get_outputs()]
        kept = {**dict(zip(names, heard, strict=True)), "mask": OrtValue.ortvalue_from_numpy(mask)}
        memory = {
            name: OrtValue.ortvalue_from_numpy(np.zeros((len(vectors), shape[1], 0, shape[3]), np.float32))
            for name, shape in past.items()
        }

        def step(tokens: np.ndarray) -> np.ndarray:
            asked = {"tokens": OrtValue.ortvalue_from_numpy(tokens), **kept, **memory}
            scores, *present = decoder.run_with_ort_values(None, asked)
            memory.update(zip(memory, present, strict=True))
            return scores.numpy()

        return step

    return started


def recomputing(folder: Path, constants: dict[str, np.ndarray]) -> Decoder:
    decoder = session(folder / "decoder.onnx")
    shape = next(each.shape for each in decoder.get_inputs() if each.name == "memory")

    def started(vectors: np.ndarray, mask: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        states = vectors.transpose(0, 2, 1) @ constants["weight"].T + constants["bias"]
        memory = np.zeros((shape[0], len(vectors), 0, shape[3]), np.float32)

        def step(tokens: np.ndarray) -> np.ndarray:
            nonlocal memory
            scores, memory = decoder.run(None, {"tokens": tokens, "states": states, "mask": mask, "memory": memory})
            return scores

        return step

    return started


if __name__ == "__main__":
    work(load)
