"""Segments as subtitles: short lines that are shown long enough to be read. Cues contain every word of the text."""

from dataclasses import dataclass

from model.transcript import Segment
from server.settings import Settings

_CLAUSE_END = (",", ";", ":", "–", "—")
# A pause between two words at which a cue preferably ends.
_PAUSE_S = 0.6


@dataclass(frozen=True)
class SubtitleRules:
    """Limits: characters per line, lines per cue, seconds per cue, and the reading speed in characters per second."""

    line_length: int
    max_lines: int
    min_s: float
    max_s: float
    chars_per_s: float

    @classmethod
    def from_settings(
        cls, settings: Settings, line_length: int | None = None, lines: int | None = None
    ) -> "SubtitleRules":
        """The settings' rules, with a request's own line length and number of lines if it has any."""
        return cls(
            line_length or settings.subtitle_line_length,
            lines or settings.subtitle_lines,
            settings.subtitle_min_s,
            settings.subtitle_max_s,
            settings.subtitle_reading_speed,
        )


@dataclass(frozen=True)
class Cue:
    """Text shown from start to end, in seconds. Lines are separated by newlines."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class _CueWord:
    text: str
    start: float
    end: float


def cues(segments: tuple[Segment, ...], rules: SubtitleRules) -> list[Cue]:
    """Cues in order, without overlaps. A word longer than a line gets its own line."""
    groups = [group for segment in segments for group in _groups(_words(segment), rules)]
    groups = _without_flashes(groups, rules)
    result = []
    for i, group in enumerate(groups):
        text = "\n".join(_lines([word.text for word in group], rules))
        start = group[0].start
        read_s = min(rules.max_s, max(rules.min_s, len(text) / rules.chars_per_s))
        end = min(max(group[-1].end, start + read_s), start + rules.max_s)
        # A cue ends when the next one starts, even if that leaves too little time to read it.
        next_start = groups[i + 1][0].start if i + 1 < len(groups) else end
        result.append(Cue(start, max(min(end, next_start), start), text))
    return result


def _words(segment: Segment) -> list[_CueWord]:
    """The words with their times. Without word times, the segment's time is divided by the words' lengths."""
    if segment.words:
        return [_CueWord(text, w.start, w.end) for w in segment.words for text in w.word.split()]
    texts = segment.text.split()
    letters = max(1, sum(map(len, texts)))
    words, at = [], segment.start
    for text in texts:
        end = at + (segment.end - segment.start) * len(text) / letters
        words.append(_CueWord(text, at, end))
        at = end
    return words


def _groups(words: list[_CueWord], rules: SubtitleRules) -> list[list[_CueWord]]:
    """The words of each cue: as many as fit, or fewer if there is a comma or a pause in the cue's second half."""
    groups: list[list[_CueWord]] = []
    while words:
        count = 1
        while count < len(words) and _fit(words[: count + 1], rules):
            count += 1
        if count < len(words):
            good_ends = [i for i in range(count // 2 + 1, count + 1) if _ends_well(words, i)]
            count = good_ends[-1] if good_ends else count
        groups.append(words[:count])
        words = words[count:]
    return groups


def _fit(words: list[_CueWord], rules: SubtitleRules) -> bool:
    """Whether the words fit into one cue."""
    lines = _lines([word.text for word in words], rules)
    return len(lines) <= rules.max_lines and words[-1].end - words[0].start <= rules.max_s


def _ends_well(words: list[_CueWord], count: int) -> bool:
    """Whether a cue of the first `count` words would end at a comma or a pause."""
    pause_s = words[count].start - words[count - 1].end if count < len(words) else 0.0
    return words[count - 1].text.endswith(_CLAUSE_END) or pause_s >= _PAUSE_S


def _without_flashes(groups: list[list[_CueWord]], rules: SubtitleRules) -> list[list[_CueWord]]:
    """The groups, with those that would be shown too briefly merged into the next one if both fit into one cue."""
    merged: list[list[_CueWord]] = []
    for group in groups:
        if merged and group[0].start - merged[-1][0].start < rules.min_s and _fit(merged[-1] + group, rules):
            merged[-1] = merged[-1] + group
        else:
            merged.append(group)
    return merged


def _lines(words: list[str], rules: SubtitleRules) -> list[str]:
    """As few lines as possible, of about equal length."""
    lines = _wrapped(words, rules.line_length)
    # The narrowest width that needs no more lines gives the most even ones.
    for width in range(rules.line_length - 1, 0, -1):
        narrower = _wrapped(words, width)
        if len(narrower) > len(lines) or max(map(len, narrower)) > rules.line_length:
            break
        lines = narrower
    return lines


def _wrapped(words: list[str], width: int) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
