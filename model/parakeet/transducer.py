"""The token loop of RNN-T and TDT: greedy search by label looping, for many recordings at once.

Tokens, frames and durations are those of NeMo's `greedy_batch`. https://arxiv.org/abs/2211.03541 (TDT),
https://arxiv.org/abs/2406.06220 (label looping). A row's result never depends on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from model.arrays import Array
from model.parakeet.confidence import confidences, power_sums
from model.parakeet.decoding import State, TimedTokens, Utterance
from model.parakeet.joint import Joint
from model.parakeet.prediction import PredictionNetwork

# Frames that a GPU looks at together for a row's next token: eight cost it hardly more than one, and few pauses
# between words are longer. Rounds, each of which writes up to one token in every row, before the host looks at them.
WINDOW, ROUNDS = 8, 8


class Transducer:
    """A prediction network and a joint, and what their outputs mean. N tokens, the blank last, then the durations."""

    def __init__(
        self, prediction: PredictionNetwork, joint: Joint, tokens: int, durations: Sequence[int], max_symbols: int
    ):
        """tokens: N; durations: in frames, () for RNN-T; max_symbols: the most tokens written at one frame."""
        self.prediction = prediction
        self.joint = joint
        self.tokens = tokens
        self.blank = tokens - 1
        self.durations = tuple(durations)
        self.max_symbols = max_symbols

    @property
    def xp(self) -> Any:
        return self.joint.xp

    def start(self, rows: int) -> list[Array]:
        """What is remembered of no text, in so many rows: the projected text (R, J), then the LSTM's memory."""
        output, memory = self.prediction.start(rows)
        return [self.joint.texts(output), *memory]

    def advanced(self, tokens: Array, memory: list[Array]) -> list[Array]:
        """What is remembered after one more token (R,) in every row."""
        output, after = self.prediction(tokens, memory[1:])
        return [self.joint.texts(output), *after]

    def started(self) -> State:
        """The state before a recording's first piece."""
        text, *lstm = (self.xp.to_numpy(each)[0] for each in self.start(1))
        return State(text=text.copy(), memory=np.stack(lstm))

    def remembered(self, states: list[State | None]) -> list[Array]:
        """What rows remember that begin with these states, None for no text."""
        fresh = self.start(1)
        kept = [fresh if each is None else self._of_state(each) for each in states]
        return [self.xp.concatenate(column) for column in zip(*kept, strict=True)]

    def _of_state(self, state: State) -> list[Array]:
        return [self.xp.asarray(each)[None] for each in (state.text, *state.memory)]


@dataclass(eq=False)
class _Row:
    """A text being written."""

    utterance: Utterance
    frames: Array
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Position:
    """Where every row stands.

    frame: the next frame to look at, counted from the row's first (R,); written: tokens already written at it (R,);
    memory: the projected texts, and the LSTM's outputs and cells.
    """

    frame: Array
    written: Array
    memory: list[Array]

    def of(self, rows: Array) -> "_Position":
        return _Position(self.frame[rows], self.written[rows], [each[rows] for each in self.memory])


@dataclass(frozen=True)
class _Written:
    """What some rounds wrote: for each round, by row, the token or the blank, its log-probability, Σ p^α, its frame
    and its duration. position: where the rows stood afterwards."""

    rows: list[_Row]
    rounds: list[tuple[Array, ...]]
    position: _Position


class GreedyRows:
    """Texts that are written side by side, each token the likeliest one.

    look_ahead: begin the next rounds before the last ones are looked at, so that a GPU does not wait for Python; a row
    that has ended takes part once more for nothing. window, rounds: see WINDOW and ROUNDS. By default as suits arrays
    that are computed in the background, or else one frame and one round.
    """

    def __init__(
        self,
        transducer: Transducer,
        look_ahead: bool | None = None,
        window: int | None = None,
        rounds: int | None = None,
    ):
        self._transducer = transducer
        self._xp = xp = transducer.xp
        self._look_ahead = xp.CONCURRENT if look_ahead is None else look_ahead
        self._window = window or (WINDOW if xp.CONCURRENT else 1)
        self._rounds = rounds or (ROUNDS if xp.CONCURRENT else 1)
        longest = max(transducer.durations, default=1)
        self._places = xp.asarray(np.arange(self._window + max(longest, 1), dtype=np.int32))
        self._durations = xp.asarray(np.array(transducer.durations, np.int32))
        self._rows: list[_Row] = []
        # The frames (ΣT, J) of all rows; where in them each row's begin, and how many it has (R,).
        self._frames: Array = None
        self._first: Array = None
        self._lengths: Array = None
        self._position: _Position | None = None
        self._ahead: _Written | None = None

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self._rows)

    def join(self, utterances: list[Utterance]) -> list[TimedTokens]:
        """Add texts; returns those without a frame to decode, and those that rounds under way ended."""
        finished, self._ahead = self._booked(self._ahead), None
        empty = [u for u in utterances if _jump(u) >= u.vectors.shape[0]]
        utterances = [u for u in utterances if u not in empty]
        finished += [self._result(_Row(u, None), None, _jump(u)) for u in empty]
        if utterances:
            self._add(utterances)
        return finished

    def step(self) -> list[TimedTokens]:
        """Some rounds for every row; returns the texts that they finished."""
        if not self._rows:
            return []
        written = self._ahead or self._begun()
        self._ahead = self._begun() if self._look_ahead else None
        return self._booked(written)

    def drop(self, key: int) -> None:
        """Free the row of the text `key`, if it has one."""
        kept = [i for i, row in enumerate(self._rows) if row.utterance.key != key]
        if len(kept) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in kept]
        if not kept:
            self._frames = self._first = self._lengths = self._position = self._ahead = None
            return
        assert self._position is not None
        at = self._xp.asarray(kept)
        self._first, self._lengths, self._position = self._first[at], self._lengths[at], self._position.of(at)

    def _add(self, utterances: list[Utterance]) -> None:
        xp, joint = self._xp, self._transducer.joint
        lengths = [u.vectors.shape[0] for u in utterances]
        frames = joint.frames(xp.concatenate([xp.asarray(u.vectors, xp.float32) for u in utterances]))
        ends = np.cumsum(lengths).tolist()
        self._rows += [_Row(u, frames[end - n : end]) for u, n, end in zip(utterances, lengths, ends, strict=True)]
        counts = [row.frames.shape[0] for row in self._rows]
        self._frames = xp.concatenate([row.frames for row in self._rows])
        self._first = xp.asarray((np.cumsum(counts) - counts).astype(np.int32))
        self._lengths = xp.asarray(np.array(counts, np.int32))
        start = xp.asarray(np.array([_jump(u) for u in utterances], np.int32))
        memory = self._transducer.remembered([u.state for u in utterances])
        new = _Position(start, start * 0, memory)
        old = self._position
        if old is not None:
            new = _Position(
                xp.concatenate([old.frame, new.frame]),
                xp.concatenate([old.written, new.written]),
                [xp.concatenate(pair) for pair in zip(old.memory, new.memory, strict=True)],
            )
        self._position = new

    def _begun(self) -> _Written:
        """Rounds, from where the rows stand. They are being computed, and nobody waits for them."""
        assert self._position is not None
        rounds = []
        for _ in range(self._rounds):
            self._position, written = self._round(self._position)
            self._xp.start(*written, self._position.frame, *self._position.memory)
            rounds.append(written)
        return _Written(list(self._rows), rounds, self._position)

    def _round(self, position: _Position) -> tuple[_Position, tuple[Array, ...]]:
        """Write the next token of every row, if there is one in its next frames."""
        xp, transducer = self._xp, self._transducer
        ahead = position.frame[:, None] + self._places[: self._window]
        inside = ahead < self._lengths[:, None]
        frames = self._frames[self._first[:, None] + xp.where(inside, ahead, 0)]
        logits = transducer.joint(frames, position.memory[0][:, None])
        found, skipped, place, label, duration = self._next_tokens(logits, inside)
        frame = position.frame + skipped

        def compute(rows: Any) -> list[Array]:
            """Log-probability and Σ p^α of the rows' tokens, and what they remember after them."""
            scores = xp.log_softmax(logits[xp.arange(len(label))[rows], place[rows]][:, : transducer.tokens])
            chosen = xp.take_along_axis(scores, label[rows][:, None], axis=1)[:, 0]
            memory = transducer.advanced(label[rows], [each[rows] for each in position.memory])
            return [chosen, power_sums(scores, xp), *memory]

        none = position.memory[0][:, 0]
        log_prob, power_sum, *memory = xp.rows_where(found, compute, [none, none, *position.memory])
        written = xp.where(skipped == 0, position.written, 0) + 1
        # At the most tokens of a frame, a duration of 0 counts as 1.
        move = xp.where(written >= transducer.max_symbols, xp.maximum(duration, 1), duration)
        after = _Position(frame + xp.where(found, move, 0), xp.where(found & (move == 0), written, 0), memory)
        return after, (label, log_prob, power_sum, frame, duration)

    def _next_tokens(self, logits: Array, inside: Array) -> tuple[Array, ...]:
        """The first token of each row in its window, from logits (R, W, N + n).

        inside: whether there is a frame (R, W). Returns arrays (R,): whether there is a token, how many frames blanks
        skip before it or in all, its place in the window, the token or the blank, its duration.
        """
        xp, transducer, W = self._xp, self._transducer, self._window
        N, blank = transducer.tokens, transducer.blank
        labels = logits[..., :N].argmax(axis=-1)
        is_blank = labels == blank
        if transducer.durations:
            durations = self._durations[logits[..., N:].argmax(axis=-1)]
            # A blank never stays where it is.
            jumps = xp.where(is_blank & inside, xp.maximum(durations, 1), 0)
        else:
            durations = jumps = xp.where(is_blank & inside, 1, 0)
        if W == 1:
            found = (inside & ~is_blank)[:, 0]
            label = xp.where(found, labels[:, 0], blank)
            return found, jumps[:, 0], label * 0, label, durations[:, 0]
        # From each place of the window, a blank leads on, if need be out of it; a token or the end leads nowhere. Each
        # turn follows twice as many blanks.
        onward = xp.pad(jumps, [(0, 0), (0, len(self._places) - W)]) + self._places
        for _ in range((W - 1).bit_length()):
            onward = xp.take_along_axis(onward, onward, axis=1)
        skipped = onward[:, 0]
        place = xp.minimum(skipped, W - 1)
        found = (skipped < W) & xp.take_along_axis(inside, place[:, None], axis=1)[:, 0]
        label = xp.where(found, xp.take_along_axis(labels, place[:, None], axis=1)[:, 0], blank)
        return found, skipped, place, label, xp.take_along_axis(durations, place[:, None], axis=1)[:, 0]

    def _booked(self, done: _Written | None) -> list[TimedTokens]:
        """Take what rounds wrote to the rows that are still there; returns the texts that are finished."""
        if done is None:
            return []
        to_numpy = self._xp.to_numpy
        columns = [np.array([to_numpy(each) for each in column]) for column in zip(*done.rounds, strict=True)]
        stands = to_numpy(done.position.frame)
        finished = []
        for i, row in enumerate(done.rows):
            if row not in self._rows:
                continue
            found = np.flatnonzero(columns[0][:, i] != self._transducer.blank)
            for values, column in zip(
                (row.tokens, row.log_probs, row.sums, row.at, row.durations), columns, strict=True
            ):
                values += column[found, i].tolist()
            limit = row.utterance.limit
            if stands[i] >= row.frames.shape[0] or (limit is not None and len(row.tokens) >= limit):
                finished.append(self._result(row, [each[i] for each in done.position.memory], int(stands[i])))
        for result in finished:
            self.drop(result.key)
        return finished

    def _result(self, row: _Row, memory: list[Array] | None, stands: int) -> TimedTokens:
        """memory: what the finished row remembers, None if it is what it began with; stands: its next frame."""
        utterance, transducer, before = row.utterance, self._transducer, row.utterance.state or State()
        after = None
        if utterance.state is not None:
            T = utterance.vectors.shape[0]
            after = replace(before, frames=before.frames + T, jump=stands - T)
            if memory is not None:
                text, *lstm = (self._xp.to_numpy(each) for each in memory)
                last = row.tokens[-1] if row.tokens else before.last
                after = replace(after, last=last, text=text.copy(), memory=np.stack(lstm))
        return TimedTokens(
            utterance.key,
            row.tokens,
            row.log_probs,
            confidences=confidences(np.array(row.sums), transducer.tokens).tolist(),
            frames=[before.frames + frame for frame in row.at],
            durations=row.durations if transducer.durations else [],
            state=after,
        ).first(utterance.limit)


def _jump(utterance: Utterance) -> int:
    """How many of its first frames an earlier piece has dealt with."""
    return utterance.state.jump if utterance.state else 0
