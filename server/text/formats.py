"""A transcript as json, text, srt or vtt. Pure: values in, text out."""

from collections.abc import Sequence
from typing import Any, Literal

from model.decoding import Detection
from model.transcript import Segment, Transcript, Word
from server.text import subtitles
from server.text.subtitles import SubtitleRules
from server.text.warnings import TranscriptionWarning

Format = Literal["json", "text", "srt", "vtt"]

MEDIA_TYPES: dict[str, str] = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


def to_dict(
    transcript: Transcript,
    language_source: str,
    detection: Detection | None = None,
    uncovered: tuple[tuple[float, float], ...] = (),
    *,
    truncated: bool = False,
    warnings: Sequence[TranscriptionWarning] = (),
) -> dict[str, Any]:
    """The transcript for JSON; times in seconds, to the millisecond. What is unknown or does not apply has no key.

    language_source: where `language` comes from, see `server.longform.transcription.language_source`; uncovered:
    (start, end) of speech that got no text; truncated: the audio was cut off.
    """
    found: dict[str, Any] = {}
    if detection:
        found = {"language_probability": round(detection.probability, 4), "language_runner_up": detection.runner_up}
    return {
        "text": transcript.text,
        "language": transcript.language,
        "language_source": language_source,
        **found,
        "target_language": transcript.target_language,
        "duration": round(transcript.duration, 3),
        **({"timestamps_source": transcript.timestamps_source} if transcript.timestamps_source else {}),
        "segments": [segment_dict(segment) for segment in transcript.segments],
        **({"uncovered": [[round(start, 3), round(end, 3)] for start, end in uncovered]} if uncovered else {}),
        **({"truncated": True} if truncated else {}),
        **warnings_dict(warnings),
    }


def warnings_dict(warnings: Sequence[TranscriptionWarning]) -> dict[str, Any]:
    """The key `warnings`, if there are any."""
    return {"warnings": [warning.to_dict() for warning in warnings]} if warnings else {}


def segment_dict(segment: Segment) -> dict[str, Any]:
    known = {
        "language": segment.language,
        "avg_logprob": _rounded(segment.avg_logprob),
        "no_speech_prob": _rounded(segment.no_speech_prob),
    }
    return {
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "words": [_word_dict(word) for word in segment.words],
        **{name: value for name, value in known.items() if value is not None},
    }


def _word_dict(word: Word) -> dict[str, Any]:
    known = {"probability": _rounded(word.probability), "confidence": _rounded(word.confidence)}
    return {
        "word": word.word,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        **{name: value for name, value in known.items() if value is not None},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def render(transcript: Transcript, format: Literal["text", "srt", "vtt"], rules: SubtitleRules) -> str:
    """The transcript in a text format."""
    match format:
        case "srt":
            return to_srt(transcript, rules)
        case "vtt":
            return to_vtt(transcript, rules)
        case _:
            return to_text(transcript)


def to_text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def to_srt(transcript: Transcript, rules: SubtitleRules) -> str:
    """SubRip: numbered cues."""
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcript, rules), 1)
    )
    return "\n".join(cues)


def to_vtt(transcript: Transcript, rules: SubtitleRules) -> str:
    """WebVTT, the text escaped."""
    cues = (
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n"
        for start, end, text in _cues(transcript, rules)
    )
    return "WEBVTT\n" + "".join(cues)


def _cues(transcript: Transcript, rules: SubtitleRules) -> list[tuple[int, int, str]]:
    """(start, end, text) in milliseconds. A cue must end after it starts."""
    times = [(round(c.start * 1000), round(c.end * 1000), c.text) for c in subtitles.cues(transcript.segments, rules)]
    return [(start, max(end, start + 1), text) for start, end, text in times]


def _clock(milliseconds: int, decimal_mark: str) -> str:
    """3661500 → 01:01:01.500"""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal_mark}{milliseconds:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
