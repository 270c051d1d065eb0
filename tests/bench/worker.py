"""One side of a comparison: a process that does the jobs it is sent, one line of JSON each, in its own environment.

Depends on numpy alone, so that it runs beside any peer.
"""

import ctypes
import gc
import io
import json
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Added to the scores of tokens that would end a text: every peer writes the count it is asked for.
NEVER = -1e9
HOP, N_FFT, PREEMPHASIS = 160, 512, 0.97


@dataclass
class Job:
    """waveforms: each (N,) float32 at 16 kHz. Of Canaries also: tokens, how many to write for each; prompt, the
    decoder's first tokens; banned, those that end a text. A peer that cannot end rows one by one writes as many tokens
    for each as for the longest."""

    waveforms: list[np.ndarray]
    tokens: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    banned: list[int] = field(default_factory=list)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, N) with zeros on the right, and the lengths (rows,)."""
        lengths = np.array([len(waveform) for waveform in self.waveforms])
        rows = np.zeros((len(lengths), lengths.max()), np.float32)
        for row, waveform in zip(rows, self.waveforms, strict=True):
            row[: len(waveform)] = waveform
        return rows, lengths


@dataclass
class Stages:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


# Does a job, measuring "features", "encode" and "decode"; returns each row's tokens.
Run = Callable[[Job, Stages], list[list[int]]]


def work(load: Callable[..., Run]) -> None:
    """Load what the command line names, then do jobs until the input ends. The answer to a failed job is its error.

    load: called with the path of the weights and the options after it.
    """
    # What libraries print must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    began = time.monotonic()
    run = load(Path(sys.argv[1]), *sys.argv[2:])
    give_memory_back()
    print(json.dumps({"load_s": time.monotonic() - began}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with np.load(asked.pop("waveforms")) as file:
            waveforms = [file[name] for name in file.files]
        job = Job(waveforms, **asked)
        print(json.dumps(answer(run, job)), file=answers, flush=True)


def give_memory_back() -> None:
    """What loading took and does not need any more. Sides that stay loaded beside each other need the room."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def answer(run: Run, job: Job) -> dict[str, Any]:
    """The tokens, and what they took: seconds by the clock, each stage and all, and the CPU's, user and system."""
    stages, began, cpu_began = Stages(), time.monotonic(), time.process_time()
    try:
        tokens = run(job, stages)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    total, cpu = time.monotonic() - began, time.process_time() - cpu_began
    return {**stages.seconds, "total": total, "cpu": cpu, "tokens": tokens}


def checkpoint(archive: Path) -> dict[str, Any]:
    """NeMo's tensors by NeMo's names, as torch tensors."""
    import torch

    with tarfile.open(archive) as tar:
        member = next(m for m in tar if Path(m.name).name == "model_weights.ckpt")
        file = tar.extractfile(member)
        assert file is not None
        return torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)


def configuration(archive: Path) -> dict[str, Any]:
    """NeMo's configuration."""
    import yaml

    with tarfile.open(archive) as tar:
        member = next(m for m in tar if Path(m.name).name == "model_config.yaml")
        file = tar.extractfile(member)
        assert file is not None
        return yaml.safe_load(file.read())


def featurizer(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    """The window and the filterbank of NeMo's preprocessor, for `log_mel`."""
    prefix = "preprocessor.featurizer"
    return {"window": weights[f"{prefix}.window"].numpy(), "fb": weights[f"{prefix}.fb"][0].numpy()}


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
