"""A pass through the model: what is asked for, and what it gives."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from model.config import SAMPLE_RATE
from model.decoding import DecodingOptions, Detection, Encoded, Generated
from model.task import Task
from model.transcript import Transcript

DEFAULT_OPTIONS = DecodingOptions()


@dataclass(frozen=True, eq=False)
class Piece:
    """What to decode in a pass over growing audio, for a model that carries state. Encoder steps count from its start.

    The pass encodes the audio from `context` on. It goes on from the end of `before` with the steps up to `end` (None:
    all), then decodes the later ones into a provisional text. before: the text so far, with its state; None at first.
    """

    context: int = 0
    end: int | None = None
    before: Generated | None = None

    @property
    def begin(self) -> int:
        """The first step to decode."""
        return self.before.state.frames if self.before else 0


@dataclass(frozen=True, eq=False)
class Look:
    """What a pass over growing audio leaves for the next one.

    of: identifies the batcher that made it; texts: each task's `Generated.memory`. The model's arrays in it are already
    computed, and only the engine's thread may compute with them.
    """

    of: object
    encoded: Encoded
    texts: dict[Task, Any]


@dataclass(frozen=True, eq=False)
class Pass:
    """One stretch of audio, short enough for one pass, to be decoded for each of `tasks`.

    waveform: (N,) float32 at 16 kHz; prefixes: the tokens that each task's text begins with, () for none; attention:
    also return the encoder steps that each token attended to; detect_language: detect the spoken language even if every
    task names one; piece: continue the text of the only task; start_by: the latest time to leave the queue, by the
    monotonic clock, or None.
    grows: the audio will grow, so return a look for the next pass; look: that of the last pass, over a shorter part of
    the same audio. Audio that no longer grows is encoded whole; a look then only saves decode steps.
    drafts: a guess at what follows each prefix, () for none. It changes no text, and saves time where it is right.
    """

    waveform: np.ndarray
    tasks: tuple[Task, ...]
    options: DecodingOptions = DEFAULT_OPTIONS
    prefixes: tuple[tuple[int, ...], ...] = ()
    attention: bool = False
    detect_language: bool = False
    piece: Piece | None = None
    start_by: float | None = None
    grows: bool = False
    look: Look | None = None
    drafts: tuple[tuple[int, ...], ...] = ()

    @property
    def rows(self) -> int:
        """The decoder rows that it takes."""
        return len(self.tasks) * (self.options.beam_size or 1)

    @property
    def length_s(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


@dataclass(frozen=True)
class Timing:
    """Seconds that a pass spent in each stage. Stages shared with other passes count in full.

    model_s: the model's time for this pass: shared stages count in part.
    """

    queue_s: float = 0.0
    features_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    model_s: float = 0.0


@dataclass(frozen=True)
class PassResult:
    """For each task: the transcript, the tokens after the prefix, and their attention (tokens, encoder steps).

    For a piece: the transcript of the text so far, and two texts: the one so far, with its state, and the provisional
    one. look: for the next pass, if the audio grows.
    """

    transcripts: tuple[Transcript, ...]
    generated: tuple[Generated, ...]
    attention: tuple[np.ndarray, ...]
    detection: Detection | None
    timing: Timing
    look: Look | None = None
