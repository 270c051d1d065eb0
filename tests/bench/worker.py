"""One side of a comparison: a process that does the jobs it is sent, one line of JSON each, in its own environment.

Depends on numpy alone, so that it runs beside any peer.
"""

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


@dataclass
class Job:
    """waveforms: each (N,) float32 at 16 kHz; tokens: how many to write for each; prompt: the decoder's first tokens;
    banned: those that end a text. Who cannot end rows by themselves writes as many for all as the longest gets."""

    waveforms: list[np.ndarray]
    tokens: list[int]
    prompt: list[int]
    banned: list[int]

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


def work(load: Callable[[Path], Run]) -> None:
    """Load what the command line names, then do jobs until the input ends; a failed one's answer is its error."""
    # What libraries print must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    began = time.monotonic()
    run = load(Path(sys.argv[1]))
    print(json.dumps({"load_s": time.monotonic() - began}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with np.load(asked.pop("waveforms")) as file:
            waveforms = [file[name] for name in file.files]
        stages, began = Stages(), time.process_time()
        try:
            tokens = run(Job(waveforms, **asked), stages)
            answer = {**stages.seconds, "cpu": time.process_time() - began, "tokens": tokens}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


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
