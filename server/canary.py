"""Canary for Python users: a model by name, and audio in whatever form it is at hand."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast, overload

import numpy as np
import soxr

from convert.hub import resolve
from model.arrays import default_dtype
from model.decoding import DecodingOptions
from model.loading import load
from model.task import AUTO, Task
from model.transcript import Transcript
from server.audio import decode as sound
from server.longform.cutting import Cutting, Piece, cut
from server.longform.transcribe import AT_ONCE, joined_transcript, task_for

if TYPE_CHECKING:
    from model.canary.model import CanaryModel

# A path, a file's bytes, float32 samples at 16 kHz, or samples with their rate in Hz; (N,) or (N, channels).
Audio = str | Path | bytes | np.ndarray | tuple[np.ndarray, int]


class Canary:
    """A loaded model. Use it in the thread that made it: MLX arrays belong to one.

    >>> canary = Canary.from_pretrained("canary-180m-flash")
    >>> canary.transcribe("talk.mp3", language="en", target_language="de").text
    """

    def __init__(self, loaded: "CanaryModel"):
        self.model = loaded

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, dtype: str | None = None, quantize: int | None = None) -> Self:
        """A known name, a Hub repository, a `.nemo` file or a converted folder; downloaded and converted when new.

        dtype: "float32", "bfloat16" or "float16"; by default 16 bits on a GPU and float32 on a CPU. quantize: pack the
        large layers' weights into 8 or 4 bits when converting.
        Raises convert.errors.ConversionError, or ValueError for a folder that is not a model.
        """
        dtype = dtype or default_dtype()
        folder = resolve(name_or_path, dtype=dtype, quantize=quantize)
        return cls(cast("CanaryModel", load(folder, dtype)))

    @property
    def languages(self) -> tuple[str, ...]:
        """What the model can be asked for, ISO 639-1."""
        return self.model.config.languages

    @overload
    def transcribe(
        self,
        audio: Audio,
        language: str = ...,
        target_language: str | None = ...,
        *,
        pnc: bool = ...,
        timestamps: str = ...,
        context: str = ...,
        beam_size: int | None = ...,
        length_penalty: float | None = ...,
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        audio: list[Audio],
        language: str = ...,
        target_language: str | None = ...,
        *,
        pnc: bool = ...,
        timestamps: str = ...,
        context: str = ...,
        beam_size: int | None = ...,
        length_penalty: float | None = ...,
    ) -> list[Transcript]: ...

    def transcribe(
        self,
        audio: Audio | list[Audio],
        language: str = "en",
        target_language: str | None = None,
        *,
        pnc: bool = True,
        timestamps: str = "none",
        context: str = "",
        beam_size: int | None = None,
        length_penalty: float | None = None,
    ) -> Transcript | list[Transcript]:
        """One audio's transcript, or a list's, of any length; with another `target_language`, its translation.

        language: "auto" finds it out; timestamps: "none", "segment" or "word". Raises model.task.TaskError for
        what the model cannot be asked, and server.errors.AudioError for sound that cannot be read.
        """
        task = Task(language, target_language, pnc, timestamps, context)
        options = DecodingOptions(beam_size, length_penalty)
        many = audio if isinstance(audio, list) else [audio]
        transcripts = self._transcripts([waveform(a) for a in many], task, options)
        return transcripts if isinstance(audio, list) else transcripts[0]

    def _transcripts(self, waveforms: list[np.ndarray], task: Task, options: DecodingOptions) -> list[Transcript]:
        """Each one's transcript: cut into pieces that a pass is good for, all of them decoded a few at a time."""
        cutting = Cutting.up_to(self.model.config.longest_s)
        pieces = [list(cut([w], cutting)) for w in waveforms]
        tasks = [self._with_language(task, of) for of in pieces]
        jobs = [(piece, task_for(piece, task)) for of, task in zip(pieces, tasks, strict=True) for piece in of]
        written: list[Transcript] = []
        for first in range(0, len(jobs), AT_ONCE):
            some = jobs[first : first + AT_ONCE]
            written += self.model.transcribe([piece.waveform for piece, _ in some], [task for _, task in some], options)
        done = iter(written)
        return [
            joined_transcript([(piece, next(done)) for piece in of], task, len(w), cutting)
            for of, task, w in zip(pieces, tasks, waveforms, strict=True)
        ]

    def _with_language(self, task: Task, pieces: list[Piece]) -> Task:
        if task.language != AUTO:
            return task
        if not pieces:
            return replace(task, language=self.languages[0])
        encoded = self.model.encodings([pieces[0].waveform])[0]
        return replace(task, language=self.model.detect_language(encoded).language)


def waveform(audio: Audio) -> np.ndarray:
    """(N,) float32 at 16 kHz, mono, of any form of audio."""
    if isinstance(audio, str | Path):
        return sound.decode(Path(audio))
    if isinstance(audio, bytes):
        return sound.decode(audio)
    samples, rate = audio if isinstance(audio, tuple) else (audio, sound.SAMPLE_RATE)
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim not in (1, 2):
        raise sound.AudioError(
            f"Samples must be floating point, (N,) or (N, channels); these are {samples.dtype} {samples.shape}."
        )
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    return soxr.resample(mono.astype(np.float32), rate, sound.SAMPLE_RATE)
