"""Segments as subtitles: short lines, shown long enough to be read. The cues' words are the text, all of it."""

from dataclasses import dataclass

from model.transcript import Segment
from server.settings import Settings

_CLAUSE_END = (",", ";", ":", "–", "—")
# A silence between two words that rather ends a cue.
_PAUSE_S = 0.6


@dataclass(frozen=True)
class SubtitleRules:
    """A line's characters, a cue's lines and seconds, and the characters that are read in a second."""

    line_length: int
    max_lines: int
    min_s: float
    max_s: float
    chars_per_s: float

    @classmethod
    def chosen(cls, settings: Settings, line_length: int | None = None, lines: int | None = None) -> "SubtitleRules":
        """The settings' rules, what a request says of a cue's shape before them."""
        return cls(
            line_length or settings.subtitle_line_length,
            lines or settings.subtitle_lines,
            settings.subtitle_min_s,
            settings.subtitle_max_s,
            settings.subtitle_reading_speed,
        )


@dataclass(frozen=True)
class Cue:
    """Text shown from start to end, in seconds; its lines are separated by line ends."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class _Word:
    text: str
    start: float
    end: float


def cues(segments: tuple[Segment, ...], rules: SubtitleRules) -> list[Cue]:
    """Cues in order that do not overlap. A word longer than a line gets a line of its own."""
    groups = [group for segment in segments for group in _groups(_words(segment), rules)]
    groups = _without_flashes(groups, rules)
    found = []
    for i, group in enumerate(groups):
        text = "\n".join(_lines([word.text for word in group], rules))
        start = group[0].start
        read_s = min(rules.max_s, max(rules.min_s, len(text) / rules.chars_per_s))
        end = min(max(group[-1].end, start + read_s), start + rules.max_s)
        # What comes next is never covered; there may then be less time than reading takes.
        following = groups[i + 1][0].start if i + 1 < len(groups) else end
        found.append(Cue(start, max(min(end, following), start), text))
    return found


def _words(segment: Segment) -> list[_Word]:
    """The words with their times; without those, by their share of the letters."""
    if segment.words:
        return [_Word(text, w.start, w.end) for w in segment.words for text in w.word.split()]
    texts = segment.text.split()
    letters = max(1, sum(map(len, texts)))
    found, at = [], segment.start
    for text in texts:
        end = at + (segment.end - segment.start) * len(text) / letters
        found.append(_Word(text, at, end))
        at = end
    return found


def _groups(words: list[_Word], rules: SubtitleRules) -> list[list[_Word]]:
    """As many words at a time as fit into a cue, rather up to a comma or a pause in its second half."""
    groups: list[list[_Word]] = []
    while words:
        fits = 1
        while fits < len(words) and _fit(words[: fits + 1], rules):
            fits += 1
        if fits < len(words):
            good = [i for i in range(fits // 2 + 1, fits + 1) if _ends_well(words, i)]
            fits = good[-1] if good else fits
        groups.append(words[:fits])
        words = words[fits:]
    return groups


def _fit(words: list[_Word], rules: SubtitleRules) -> bool:
    """Whether they fit into one cue."""
    lines = _lines([word.text for word in words], rules)
    return len(lines) <= rules.max_lines and words[-1].end - words[0].start <= rules.max_s


def _ends_well(words: list[_Word], count: int) -> bool:
    pause_s = words[count].start - words[count - 1].end if count < len(words) else 0.0
    return words[count - 1].text.endswith(_CLAUSE_END) or pause_s >= _PAUSE_S


def _without_flashes(groups: list[list[_Word]], rules: SubtitleRules) -> list[list[_Word]]:
    """Groups of which none is over too soon to be seen, where it fits into one cue with the next."""
    kept: list[list[_Word]] = []
    for group in groups:
        if kept and group[0].start - kept[-1][0].start < rules.min_s and _fit(kept[-1] + group, rules):
            kept[-1] = kept[-1] + group
        else:
            kept.append(group)
    return kept


def _lines(words: list[str], rules: SubtitleRules) -> list[str]:
    """As few lines as possible, of about the same length."""
    lines = _filled(words, rules.line_length)
    # The narrowest width that needs no more lines is the evenest.
    for width in range(rules.line_length - 1, 0, -1):
        narrower = _filled(words, width)
        if len(narrower) > len(lines) or max(map(len, narrower)) > rules.line_length:
            break
        lines = narrower
    return lines


def _filled(words: list[str], width: int) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
