"""When tokens and words were spoken, in encoder frames, as NeMo's timestamps have it."""

from model.parakeet.decoding import TimedTokens
from model.parakeet.words import Spelling
from model.timestamps import WordTokens

Span = tuple[int, int]


def token_spans(written: TimedTokens, spelling: Spelling) -> list[Span]:
    """First frame and end of each token.

    An RNN-T tells no durations: its tokens end after their first frame. Otherwise a mark gets the end of the token
    before it, since it is written when the model is sure of it, which may be after a pause. In CTC, NeMo's spans are
    those of the token before, and a mark ends where it begins; these are the token's own.
    """
    if not written.durations:
        return [(frame, frame + 1) for frame in written.frames]
    spans: list[Span] = []
    joins = spelling.joins(written.tokens)
    for joined, frame, duration in zip(joins, written.frames, written.durations, strict=True):
        if spans and joined:
            spans.append((spans[-1][1], spans[-1][1]))
        else:
            spans.append((frame, frame + duration))
    return spans


def word_spans(words: list[WordTokens], spans: list[Span]) -> list[Span]:
    """First frame and end of each word, from those of its tokens."""
    return [(spans[word.tokens.start][0], spans[word.tokens.stop - 1][1]) for word in words]
