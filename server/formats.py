"""A Transcript as json, text, srt or vtt. Pure: values in, text out."""

from typing import Any, Literal

from model.transcript import Segment, Transcript, Word

Format = Literal["json", "text", "srt", "vtt"]

MEDIA_TYPES: dict[str, str] = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


def to_dict(transcript: Transcript, language_source: str) -> dict[str, Any]:
    """The transcript for JSON; times in seconds, to the millisecond.

    `language_source` says where `language` is from: "request", or "default" when it was only assumed.
    """
    return {
        "text": transcript.text,
        "language": transcript.language,
        "language_source": language_source,
        "target_language": transcript.target_language,
        "duration": round(transcript.duration, 3),
        "segments": [segment_dict(segment) for segment in transcript.segments],
    }


def segment_dict(segment: Segment) -> dict[str, Any]:
    return {
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "words": [_word_dict(word) for word in segment.words],
    }


def _word_dict(word: Word) -> dict[str, Any]:
    return {"word": word.word, "start": round(word.start, 3), "end": round(word.end, 3)}


def to_text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def to_srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, one a segment."""
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcript), 1)
    )
    return "\n".join(cues)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT: one cue a segment, its text escaped."""
    cues = (
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n" for start, end, text in _cues(transcript)
    )
    return "WEBVTT\n" + "".join(cues)


def _cues(transcript: Transcript) -> list[tuple[int, int, str]]:
    """(start, end, text) in milliseconds. A blank line would end a cue, and a cue must end after it starts."""
    cues = []
    for segment in transcript.segments:
        text = " ".join(segment.text.split())
        start, end = round(segment.start * 1000), round(segment.end * 1000)
        if text:
            cues.append((start, max(end, start + 1), text))
    return cues


def _clock(milliseconds: int, decimal_mark: str) -> str:
    """3661500 → 01:01:01.500"""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal_mark}{milliseconds:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
