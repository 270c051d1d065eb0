"""A Transcript as the JSON of OpenAI's API. Pure functions that return dictionaries."""

import math
from typing import Any

from model.transcript import Segment, Transcript, Word
from server.text.languages import LANGUAGE_NAMES


def to_openai_json(transcript: Transcript) -> dict[str, Any]:
    """`response_format=json`."""
    return {
        "text": transcript.text,
        "languages": [{"code": transcript.target_language}],
        "usage": usage(transcript),
    }


def to_verbose_json(transcript: Transcript, task: str, words: bool) -> dict[str, Any]:
    """`response_format=verbose_json`. `language` is the name of the text's language; no value is null.

    task: "transcribe" or "translate"; words: whether to add words with times, at the top level and to the segments.
    """
    body: dict[str, Any] = {
        "task": task,
        "language": LANGUAGE_NAMES.get(transcript.target_language, transcript.target_language),
        "languages": [{"code": transcript.target_language}],
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "segments": [_segment(number, segment, words) for number, segment in enumerate(transcript.segments)],
        "usage": usage(transcript),
    }
    if transcript.timestamps_source:
        body["timestamps_source"] = transcript.timestamps_source
    if words:
        body["words"] = [_word(word) for segment in transcript.segments for word in segment.words]
    return body


def usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def _segment(number: int, segment: Segment, words: bool) -> dict[str, Any]:
    return {
        "id": number,
        "seek": round(segment.start * 100),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": 0.0,
        "avg_logprob": _number(segment.avg_logprob),
        "compression_ratio": round(segment.compression_ratio, 4),
        "no_speech_prob": _number(segment.no_speech_prob),
        **({"words": [_word(word) for word in segment.words]} if words else {}),
    }


def _word(word: Word) -> dict[str, Any]:
    return {"word": word.word, "start": round(word.start, 3), "end": round(word.end, 3)}


def _number(value: float | None) -> float:
    # Clients' schemas require a number, and 0 makes no client discard a segment.
    return round(value, 4) if value is not None and math.isfinite(value) else 0.0
