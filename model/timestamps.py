"""Generated tokens to words and segments with seconds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.decoding import Generated
from model.tokenizer import Tokenizer
from model.transcript import Segment, Word

SENTENCE_END = (".", "?", "!")


@dataclass(frozen=True)
class WordTokens:
    """A word and the stretch of tokens that wrote it; times included, where there are any."""

    text: str
    tokens: range


def plain_text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens without the special ones, words separated by one space."""
    return " ".join(tokenizer.decode([t for t in tokens if not tokenizer.is_special(t)]).split())


def whole_segment(generated: Generated, tokenizer: Tokenizer, duration: float) -> tuple[Segment, ...]:
    """One segment over the whole audio, for output that carries no times; none where nothing was said."""
    text = plain_text(generated.tokens, tokenizer)
    return (_segment(0.0, duration, text, generated, range(len(generated.tokens))),) if text else ()


def timed_segments(
    generated: Generated, tokenizer: Tokenizer, step_s: float, duration: float, early_s: float = 0.0
) -> tuple[Segment, ...]:
    """Segments of a flash model's output, `<|12|> word<|17|>`, ending where sentences do.

    Times are encoder steps of `step_s` seconds, counted from `early_s` before the audio, and kept within 0 … duration.
    Every token is in one segment. Output without times gives one segment over the whole audio.
    """
    words, times = _timed_words(
        generated.tokens, tokenizer, lambda step: min(max(0.0, step * step_s - early_s), duration)
    )
    return sentences(words, times, generated, tokenizer) if words else whole_segment(generated, tokenizer, duration)


def sentences(
    words: list[WordTokens], times: list[tuple[float, float]], generated: Generated, tokenizer: Tokenizer
) -> tuple[Segment, ...]:
    """Words with their (start, end), grouped into segments that end where sentences do. Every token is in one."""
    segments: list[Segment] = []
    group: list[Word] = []
    first = stop = 0
    for written, (start, end) in zip(words, times, strict=True):
        last = written is words[-1]
        begin, stop = stop, len(generated.tokens) if last else written.tokens.stop
        tokens, known = tuple(generated.tokens[begin:stop]), tuple(_log_probs(range(begin, stop), generated))
        probability = _probability(written.tokens, generated, tokenizer)
        group.append(Word(written.text, start, end, probability, tokens, known))
        if last or written.text.endswith(SENTENCE_END):
            text = " ".join(word.word for word in group)
            segments.append(_segment(group[0].start, group[-1].end, text, generated, range(first, stop), tuple(group)))
            group, first = [], stop
    return tuple(segments)


def written_words(tokens: Sequence[int], tokenizer: Tokenizer) -> list[WordTokens]:
    """The words of untimed tokens; joined with spaces they are the text."""
    starts = [i for i, t in enumerate(tokens) if tokenizer.starts_word(t)] or [0]
    edges = [0, *starts[1:], len(tokens)] if starts[0] == 0 else [0, *starts, len(tokens)]
    words: list[WordTokens] = []
    begin = 0
    for stop in edges[1:]:
        # What has no text of its own, a lone ▁ or a special token, goes with the next word.
        if text := plain_text(tokens[begin:stop], tokenizer):
            words.append(WordTokens(text, range(begin, stop)))
            begin = stop
    return words


def _timed_words(
    tokens: list[int], tokenizer: Tokenizer, seconds: Callable[[int], float]
) -> tuple[list[WordTokens], list[tuple[float, float]]]:
    """Every stretch of text with the times around it; none at all if there is no time in it."""
    words: list[WordTokens] = []
    times: list[tuple[float, float]] = []
    first, inside, start, before = 0, 0, 0, False
    for i, token in enumerate(tokens):
        step = tokenizer.time_steps.get(token)
        if step is None:
            continue
        if text := plain_text(tokens[inside:i], tokenizer):
            words.append(WordTokens(text, range(first, i + 1)))
            times.append((seconds(start), seconds(max(step, start))))
            first = i + 1
        # Also where a start or an end is missing, the next word begins no sooner than this time.
        start, inside, before = step, i + 1, True
    if before and (text := plain_text(tokens[inside:], tokenizer)):
        words.append(WordTokens(text, range(first, len(tokens))))
        times.append((seconds(start), seconds(start)))
    return words, times


def _segment(
    start: float, end: float, text: str, generated: Generated, stretch: range, words: tuple[Word, ...] = ()
) -> Segment:
    tokens = tuple(generated.tokens[stretch.start : stretch.stop])
    known = _log_probs(stretch, generated)
    return Segment(
        start, end, text, tokens, words, sum(known) / len(known) if known else None, no_speech_prob=generated.nothing
    )


def _probability(stretch: range, generated: Generated, tokenizer: Tokenizer) -> float | None:
    """The geometric mean over the tokens of a word's text."""
    spelling = [i for i in stretch if not tokenizer.is_special(generated.tokens[i])]
    known = [p for i in spelling for p in _log_probs(range(i, i + 1), generated)]
    return math.exp(sum(known) / len(known)) if known else None


def _log_probs(stretch: range, generated: Generated) -> list[float]:
    """Of those tokens whose log-probability is known: a prefix that was given has none."""
    given = len(generated.tokens) - len(generated.log_probs)
    return generated.log_probs[max(0, stretch.start - given) : max(0, stretch.stop - given)]
