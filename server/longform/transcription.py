"""The result of a recording: its transcript, where its language comes from, warnings and times."""

from dataclasses import dataclass, replace
from typing import Any

from model.decoding import Detection
from model.task import AUTO, Task
from model.transcript import Transcript
from server.engine.passes import Timing
from server.longform.pieces import Spans
from server.longform.spoken import ASSUMED
from server.text import formats
from server.text.warnings import TranscriptionWarning


@dataclass(frozen=True)
class RecordingTiming(Timing):
    """Seconds a recording took at each stage, its passes added up; `total_s` is elapsed time."""

    audio_decode_s: float = 0.0
    total_s: float = 0.0

    def plus(self, timing: Timing) -> "RecordingTiming":
        """With one more pass."""
        return replace(
            self,
            queue_s=self.queue_s + timing.queue_s,
            features_s=self.features_s + timing.features_s,
            encode_s=self.encode_s + timing.encode_s,
            decode_s=self.decode_s + timing.decode_s,
        )

    def to_dict(self, audio_s: float) -> dict[str, float]:
        """For JSON, with the real-time factor. audio_s: the audio's length."""
        seconds = {
            "queue_s": self.queue_s,
            "audio_decode_s": self.audio_decode_s,
            "features_s": self.features_s,
            "encode_s": self.encode_s,
            "decode_s": self.decode_s,
            "total_s": self.total_s,
            "audio_s": audio_s,
            "real_time_factor": self.total_s / audio_s if audio_s else 0.0,
        }
        return {name: round(value, 4) for name, value in seconds.items()}


@dataclass(frozen=True)
class Transcription(Transcript):
    """A recording's transcript, and what else was found.

    language_source: where the language comes from if the task left it open, one of those in `spoken`; detection: of the
    language, in the first piece where it was asked for, or from all of the text; uncovered: (start, end) of speech that
    got no text; truncated: the file was cut off, and the text ends where it does.
    """

    language_source: str = ASSUMED
    detection: Detection | None = None
    timing: RecordingTiming = RecordingTiming()
    uncovered: Spans = ()
    truncated: bool = False
    warnings: tuple[TranscriptionWarning, ...] = ()

    def to_dict(self, language_source: str) -> dict[str, Any]:
        """For JSON; see `formats.to_dict`."""
        return formats.to_dict(
            self, language_source, self.detection, self.uncovered, truncated=self.truncated, warnings=self.warnings
        )


def language_source(task: Task, given: bool, done: Transcription) -> str:
    """Where a transcript's language comes from: "request"; "default", the server's or only assumed; or as found.

    task: as requested; given: whether the request named its language.
    """
    if task.language == AUTO:
        return done.language_source
    return "request" if given else ASSUMED
