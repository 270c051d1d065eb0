"""Beam search for RNN-T and TDT: NeMo's `malsd_batch`, alignment-length synchronous decoding.

https://ieeexplore.ieee.org/document/9053040, with at most `max_symbols` tokens at a frame and no limit on the text's
length. Every hypothesis takes one label a step, a token or the blank. There is no length penalty.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from model.arrays import Array
from model.parakeet.confidence import confidences, power_sums
from model.parakeet.decoding import TimedTokens, Utterance
from model.parakeet.transducer import Transducer

# A hypothesis that takes no label, since it is complete.
NOTHING = -1


@dataclass(frozen=True)
class Text:
    """The tokens of a hypothesis: the last one, and the text before it, which other hypotheses may share.

    token: NOTHING in an empty text; log_prob, power_sum: of the token, see `confidence`; duration: in frames; length:
    in tokens; key: the same for all texts with the same tokens.
    """

    before: "Text | None" = None
    token: int = NOTHING
    log_prob: float = 0.0
    power_sum: float = 0.0
    frame: int = 0
    duration: int = 0
    length: int = 0
    key: int = 0

    def followed_by(self, token: int, log_prob: float, power_sum: float, frame: int, duration: int) -> "Text":
        """This text and one more token."""
        return Text(self, token, log_prob, power_sum, frame, duration, self.length + 1, hash((self.key, token)))

    def steps(self) -> "list[Text]":
        """The text after each of its tokens, the first one first."""
        found, last = [], self
        while last.before is not None:
            found.append(last)
            last = last.before
        return found[::-1]


class Beam:
    """The hypotheses of one text, all of them at the same number of labels.

    scores: log-probabilities (width,), -∞ where there is no hypothesis; frames: the next one that each looks at;
    texts: the tokens of each.
    """

    def __init__(self, width: int, length: int, transducer: Transducer):
        """length: encoder frames."""
        self.width = width
        self.scores = np.full(width, -np.inf, np.float32)
        self.scores[0] = 0
        self.frames = np.zeros(width, int)
        self.texts = [Text()] * width
        self._written = np.zeros(width, int)
        self._length = length
        self._blank = transducer.blank
        self._durations = np.array(transducer.durations, int)
        self._max_symbols = transducer.max_symbols

    @property
    def finished(self) -> bool:
        """Whether every hypothesis has come to the end of the audio."""
        return not (self._is_open & np.isfinite(self.scores)).any()

    @property
    def _is_open(self) -> np.ndarray:
        return self.frames < self._length

    def advance(self, tokens: np.ndarray, durations: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One label for each hypothesis, from log-probabilities of tokens (width, N) and of durations (width, n).

        sums: `power_sums` of the tokens (width,). Returns the parents (width,), and the labels (width,): tokens, the
        blank or NOTHING.
        """
        gains, labels, jumps = self._continuations(tokens, durations)
        candidates = (self.scores[:, None] + gains).astype(np.float32)
        # A complete hypothesis goes on as it is.
        complete = ~self._is_open
        candidates[complete] = -np.inf
        candidates[complete, 0] = self.scores[complete]
        labels[complete], jumps[complete] = NOTHING, 0
        # After the most tokens of a frame comes a blank.
        forced = ~complete & (self._written >= self._max_symbols)
        best_duration = durations.max(axis=1) if len(self._durations) else 0
        candidates[forced] = -np.inf
        candidates[forced, 0] = (self.scores + tokens[:, self._blank] + best_duration)[forced]
        labels[forced] = self._blank
        jumps[forced] = np.maximum(jumps[forced], 1)
        chosen = np.argsort(-candidates.reshape(-1), kind="stable")[: self.width]
        parents, labels, jumps = chosen // candidates.shape[1], labels.reshape(-1)[chosen], jumps.reshape(-1)[chosen]
        self.scores = candidates.reshape(-1)[chosen]
        is_token = (labels != self._blank) & (labels != NOTHING)
        self.texts = [
            self.texts[p].followed_by(int(k), float(tokens[p, k]), float(sums[p]), int(self.frames[p]), int(d))
            if is_token[i]
            else self.texts[p]
            for i, (p, k, d) in enumerate(zip(parents, labels, jumps, strict=True))
        ]
        self._written = np.where(jumps > 0, 0, self._written[parents] + is_token)
        self.frames = self.frames[parents] + jumps
        self._merge()
        return parents, labels

    def _continuations(self, tokens: np.ndarray, durations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best of each hypothesis, best first, up to (width, width) each: log-probabilities, labels, jumps."""
        # The best pairs of token and duration are among the best tokens.
        labels = _best(tokens, self.width)
        gains = np.take_along_axis(tokens, labels, axis=1)
        if not len(self._durations):
            return gains, labels, (labels == self._blank).astype(int)
        n = len(self._durations)
        pairs = (gains[:, :, None] + durations[:, None, :]).reshape(self.width, -1)
        best = _best(pairs, self.width)
        labels, jumps = np.take_along_axis(labels, best // n, axis=1), self._durations[best % n]
        jumps = np.where(labels == self._blank, np.maximum(jumps, 1), jumps)
        return np.take_along_axis(pairs, best, axis=1), labels, jumps

    def _merge(self) -> None:
        """Hypotheses with the same tokens at the same frame become one; the best of them gets all their probability."""
        groups: dict[Any, list[int]] = {}
        for i, (text, frame) in enumerate(zip(self.texts, self.frames.tolist(), strict=True)):
            if np.isfinite(self.scores[i]):
                groups.setdefault((text.length, text.key, frame), []).append(i)
        for same in groups.values():
            if len(same) > 1:
                first = max(same, key=lambda i: self.scores[i])
                total = np.logaddexp.reduce(self.scores[same])
                self.scores[same] = -np.inf
                self.scores[first] = total

    def best(self) -> Text:
        """The text with the best score, normalised by its length."""
        lengths = np.array([text.length for text in self.texts])
        return self.texts[int(np.argmax(self.scores / (lengths + 1)))]


@dataclass(frozen=True)
class _Searched:
    """A text being searched for, and its frames (T, J)."""

    utterance: Utterance
    frames: Array
    beam: Beam


class BeamRows:
    """Texts that are searched for side by side, with a row for each hypothesis. The host looks at every step."""

    def __init__(self, transducer: Transducer):
        self._transducer = transducer
        self._xp = transducer.xp
        self._searched: list[_Searched] = []
        # What each row remembers, see `Transducer`.
        self._memory: list[Array] = []

    @property
    def rows(self) -> int:
        """Rows in use."""
        return sum(each.beam.width for each in self._searched)

    def join(self, utterances: list[Utterance]) -> list[TimedTokens]:
        """Add texts; returns those without a frame to decode."""
        transducer, finished = self._transducer, []
        for utterance in utterances:
            T, width = utterance.vectors.shape[0], utterance.beam_size
            if not T:
                finished.append(TimedTokens(utterance.key, [], []))
                continue
            frames = transducer.joint.frames(utterance.vectors)
            self._searched.append(_Searched(utterance, frames, Beam(width, T, transducer)))
            new = transducer.start(width)
            old = self._memory or [each[:0] for each in new]
            self._memory = [self._xp.concatenate(pair) for pair in zip(old, new, strict=True)]
        return finished

    def step(self) -> list[TimedTokens]:
        """One label for every hypothesis; returns the texts that are found."""
        if not self._searched:
            return []
        xp, transducer = self._xp, self._transducer
        heard = []
        for each in self._searched:
            heard.append(each.frames[xp.asarray(np.minimum(each.beam.frames, each.frames.shape[0] - 1))])
        logits = transducer.joint(xp.concatenate(heard), self._memory[0])
        tokens = xp.log_softmax(logits[:, : transducer.tokens])
        durations = xp.log_softmax(logits[:, transducer.tokens :]) if transducer.durations else logits[:, :0]
        scores = [xp.to_numpy(each) for each in (tokens, durations, power_sums(tokens, xp))]
        parents, labels, first = [], [], 0
        for each in self._searched:
            rows = slice(first, first + each.beam.width)
            of_beam, written = each.beam.advance(*(values[rows] for values in scores))
            parents.append(first + of_beam)
            labels.append(written)
            first = rows.stop
        self._remember(np.concatenate(parents), np.concatenate(labels))
        finished = [self._result(each) for each in self._searched if each.beam.finished]
        for result in finished:
            self.drop(result.key)
        return finished

    def drop(self, key: int) -> None:
        """Free the rows of the text `key`, if it has any."""
        kept = [(each, [each.utterance.key != key] * each.beam.width) for each in self._searched]
        rows = np.flatnonzero([keeps for _, by_row in kept for keeps in by_row])
        if len(rows) < self.rows:
            self._searched = [each for each in self._searched if each.utterance.key != key]
            self._memory = [each[self._xp.asarray(rows)] for each in self._memory] if len(rows) else []

    def _remember(self, parents: np.ndarray, labels: np.ndarray) -> None:
        """Each row becomes what its parent was; rows with a token go on from there."""
        xp, transducer = self._xp, self._transducer
        memory, tokens = [each[xp.asarray(parents)] for each in self._memory], xp.asarray(labels)
        is_token = xp.asarray((labels != transducer.blank) & (labels != NOTHING))
        self._memory = xp.rows_where(
            is_token, lambda rows: transducer.advanced(tokens[rows], [each[rows] for each in memory]), memory
        )

    def _result(self, searched: _Searched) -> TimedTokens:
        steps, transducer = searched.beam.best().steps(), self._transducer
        return TimedTokens(
            searched.utterance.key,
            [step.token for step in steps],
            [step.log_prob for step in steps],
            confidences=confidences(np.array([step.power_sum for step in steps]), transducer.tokens).tolist(),
            frames=[step.frame for step in steps],
            durations=[step.duration for step in steps if transducer.durations],
        ).first(searched.utterance.limit)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices (R, k) of the largest of scores (R, N), largest first, equal ones in index order."""
    # Sorting a whole vocabulary would take ten times as long.
    k = min(k, scores.shape[1])
    candidates = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)
