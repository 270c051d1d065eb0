"""Generated tokens → words and segments with times in seconds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.decoding import Generated
from model.tokenizer import Tokenizer
from model.transcript import Segment, Word

SENTENCE_END = (".", "?", "!")


@dataclass(frozen=True)
class WordTokens:
    """A word and the range of tokens that wrote it, time tokens included."""

    text: str
    tokens: range


def plain_text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens, without special ones, words separated by one space."""
    return " ".join(tokenizer.decode([t for t in tokens if not tokenizer.is_special(t)]).split())


def whole_segment(generated: Generated, tokenizer: Tokenizer, duration: float) -> tuple[Segment, ...]:
    """One segment over the whole audio, for output without times; no segment if there is no text."""
    return segment_of(plain_text(generated.tokens, tokenizer), generated, duration)


def segment_of(text: str, generated: Generated, duration: float) -> tuple[Segment, ...]:
    """`whole_segment` of tokens whose text is known."""
    return (_segment(0.0, duration, text, generated, range(len(generated.tokens))),) if text else ()


def timed_segments(
    generated: Generated, tokenizer: Tokenizer, step_s: float, duration: float, early_s: float = 0.0
) -> tuple[Segment, ...]:
    """Segments from the output of a flash model, `<|12|> word<|17|>`. A segment is a sentence.

    Times are encoder steps of `step_s` seconds, counted from `early_s` before the audio, and limited to 0 … duration.
    Every token belongs to a segment. Output without times gives one segment over the whole audio.
    """
    words, times = _timed_words(
        generated.tokens, tokenizer, lambda step: min(max(0.0, step * step_s - early_s), duration)
    )
    return sentences(words, times, generated, tokenizer) if words else whole_segment(generated, tokenizer, duration)


def sentences(
    words: list[WordTokens], times: list[tuple[float, float]], generated: Generated, tokenizer: Tokenizer
) -> tuple[Segment, ...]:
    """Words with their (start, end), grouped into sentences. Every token belongs to a segment."""
    segments: list[Segment] = []
    group: list[Word] = []
    first = stop = 0
    for written, (start, end) in zip(words, times, strict=True):
        last = written is words[-1]
        begin, stop = stop, len(generated.tokens) if last else written.tokens.stop
        tokens, known = tuple(generated.tokens[begin:stop]), tuple(_log_probs(range(begin, stop), generated))
        probability = _probability(written.tokens, generated, tokenizer)
        confidence = _confidence(written.tokens, generated, tokenizer)
        group.append(Word(written.text, start, end, probability, tokens, known, confidence))
        if last or written.text.endswith(SENTENCE_END):
            text = " ".join(word.word for word in group)
            segments.append(_segment(group[0].start, group[-1].end, text, generated, range(first, stop), tuple(group)))
            group, first = [], stop
    return tuple(segments)


def written_words(tokens: Sequence[int], tokenizer: Tokenizer) -> list[WordTokens]:
    """The words of tokens without times. Joined with spaces they are the text."""
    starts = [i for i, t in enumerate(tokens) if tokenizer.starts_word(t)] or [0]
    edges = [0, *starts[1:], len(tokens)] if starts[0] == 0 else [0, *starts, len(tokens)]
    words: list[WordTokens] = []
    begin = 0
    for stop in edges[1:]:
        # Tokens without text, a lone ▁ or a special token, belong to the next word.
        if text := plain_text(tokens[begin:stop], tokenizer):
            words.append(WordTokens(text, range(begin, stop)))
            begin = stop
    return words


def _timed_words(
    tokens: list[int], tokenizer: Tokenizer, seconds: Callable[[int], float]
) -> tuple[list[WordTokens], list[tuple[float, float]]]:
    """The words between time tokens, with those times; no words if there are no time tokens."""
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
        # Even if a start or an end is missing, the next word begins no earlier than this.
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
    """The geometric mean over the tokens of a word's text; None if none is known."""
    known = [p for i in _spelling(stretch, generated, tokenizer) for p in _log_probs(range(i, i + 1), generated)]
    return math.exp(sum(known) / len(known)) if known else None


def _confidence(stretch: range, generated: Generated, tokenizer: Tokenizer) -> float | None:
    """The least over the tokens of a word's text; None if the model tells none."""
    spelling = _spelling(stretch, generated, tokenizer)
    return min((generated.confidences[i] for i in spelling), default=None) if generated.confidences else None


def _spelling(stretch: range, generated: Generated, tokenizer: Tokenizer) -> list[int]:
    """Which of those tokens wrote text."""
    return [i for i in stretch if not tokenizer.is_special(generated.tokens[i])]


def _log_probs(stretch: range, generated: Generated) -> list[float]:
    """The known log-probabilities of those tokens. Tokens of a given prefix have none."""
    given = len(generated.tokens) - len(generated.log_probs)
    return generated.log_probs[max(0, stretch.start - given) : max(0, stretch.stop - given)]
