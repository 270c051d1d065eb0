"""Generated tokens to words and segments with seconds."""

from collections.abc import Callable
from dataclasses import dataclass

from model.tokenizer import Tokenizer
from model.transcript import Segment, Word

_SENTENCE_END = (".", "?", "!")


@dataclass(frozen=True)
class _Spoken:
    """A word and the tokens that wrote it, times included."""

    word: Word
    tokens: tuple[int, ...]


def plain_text(tokens: list[int], tokenizer: Tokenizer) -> str:
    """The text of tokens without the special ones, trimmed."""
    return tokenizer.decode([t for t in tokens if not tokenizer.is_special(t)]).strip()


def whole_segment(tokens: list[int], tokenizer: Tokenizer, duration: float) -> tuple[Segment, ...]:
    """One segment over the whole audio, for output that carries no times; none where nothing was said."""
    text = plain_text(tokens, tokenizer)
    return (Segment(0.0, duration, text, tuple(tokens)),) if text else ()


def timed_segments(
    tokens: list[int], tokenizer: Tokenizer, step_s: float, duration: float, early_s: float = 0.0
) -> tuple[Segment, ...]:
    """Segments of a flash model's output, `<|12|> word<|17|>`, ending where sentences do.

    Times are encoder steps of `step_s` seconds, counted from `early_s` before the audio, and kept within 0 … duration.
    Every token is in one segment. Output without times gives one segment over the whole audio.
    """
    spoken, rest = _spoken(tokens, tokenizer, lambda step: min(max(0.0, step * step_s - early_s), duration))
    if not spoken:
        return whole_segment(tokens, tokenizer, duration)
    groups: list[list[_Spoken]] = [[]]
    for item in spoken:
        if groups[-1] and groups[-1][-1].word.word.endswith(_SENTENCE_END):
            groups.append([])
        groups[-1].append(item)
    segments = []
    for group in groups:
        tail = rest if group is groups[-1] else ()
        written = [t for item in group for t in item.tokens] + list(tail)
        words = tuple(item.word for item in group)
        segments.append(Segment(words[0].start, words[-1].end, plain_text(written, tokenizer), tuple(written), words))
    return tuple(segments)


def _spoken(
    tokens: list[int], tokenizer: Tokenizer, seconds: Callable[[int], float]
) -> tuple[list[_Spoken], tuple[int, ...]]:
    """Every stretch of text between two times, and the tokens left after the last of them."""
    found: list[_Spoken] = []
    taken: list[int] = []
    inside: list[int] = []
    start: int | None = None
    for token in tokens:
        taken.append(token)
        step = tokenizer.time_steps.get(token)
        if step is None:
            inside.append(token)
            continue
        text = plain_text(inside, tokenizer)
        if start is not None and text:
            word = Word(text, seconds(start), seconds(max(step, start)))
            found.append(_Spoken(word, tuple(taken)))
            taken, start = [], None
        else:
            start = step
        inside = []
    return found, tuple(taken)
