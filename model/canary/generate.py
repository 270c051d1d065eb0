"""The token loop: a running batch of rows, which utterances join and leave at any step.

Knows the decoder and token ids; knows no text, audio or request. A row's result never depends on the others.
"""

from dataclasses import dataclass, field

import numpy as np

from model.arrays import Array
from model.canary.beam import Beam
from model.canary.decoder import Decoder, Head, of_row
from model.decoding import Generated


@dataclass(frozen=True)
class Utterance:
    """One text to write from an encoded audio.

    key: the caller's name for it; encoded: (T, M), all of it real; prompt: token ids; limit: the most new tokens.
    """

    key: int
    encoded: Array
    prompt: list[int]
    limit: int
    beam_size: int = 1
    length_penalty: float = 0.0


@dataclass
class _Greedy:
    """A row that is decoded greedily: its tokens, and the position of the next one."""

    utterance: Utterance
    position: int
    nothing: float
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    width = 1

    def last_tokens(self) -> list[int]:
        return self.tokens[-1:]

    def write(self, token: int, log_prob: float) -> None:
        self.tokens.append(token)
        self.log_probs.append(log_prob)

    def write_best(self, scores: np.ndarray) -> None:
        """The most probable token of log-probabilities (V,)."""
        token = int(scores.argmax())
        self.write(token, float(scores[token]))


@dataclass
class _Searched:
    """The rows of a beam, in the order of its hypotheses."""

    utterance: Utterance
    position: int
    nothing: float
    beam: Beam
    rows: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.beam.width

    def last_tokens(self) -> list[int]:
        return self.beam.tokens[:, -1].tolist()


class RunningBatch:
    """Rows being decoded side by side, each a step at a time.

    look_ahead: prepare each step while the last one is computed, and start it before that one's tokens are looked at,
    so that a GPU hardly waits for Python; a row that has ended is then stepped once for nothing. By default with arrays
    that are computed in the background.
    """

    def __init__(
        self,
        decoder: Decoder,
        head: Head,
        end_id: int,
        pad_id: int,
        no_speech_id: int | None = None,
        look_ahead: bool | None = None,
    ):
        self._xp = decoder.xp
        self._look_ahead = self._xp.CONCURRENT if look_ahead is None else look_ahead
        # The tokens (R,) and log-probabilities (R,) of a step under way.
        self._ahead: tuple[Array, Array] | None = None
        self._decoder = decoder
        self._head = head
        self._ends = (end_id, pad_id)
        self._silent = [end_id] if no_speech_id is None else [end_id, no_speech_id]
        self._text = decoder.empty_text_slots()
        self._audio = decoder.empty_audio_slots()
        # By row.
        self._owners: list[_Greedy | _Searched] = []

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self._owners)

    def join(self, utterances: list[Utterance]) -> list[Generated]:
        """Prefill `utterances` together and add their rows.

        Returns the finished ones: those that ended with their first token, and those that a step under way ended.
        """
        finished = self._settled()
        # Texts of one audio, such as a transcript and a translation, share its cross-attention memory.
        audios = {id(u.encoded): u.encoded for u in utterances}
        of_audio = [list(audios).index(id(u.encoded)) for u in utterances]
        encoded, lengths = self._padded(list(audios.values()))
        memory = self._decoder.cross_memory(encoded, lengths)
        prompts = [u.prompt for u in utterances]
        S = max(map(len, prompts))
        tokens = [p + [self._ends[1]] * (S - len(p)) for p in prompts]
        hidden, written = self._decoder.prefill(tokens, memory.of_rows(of_audio))
        last = hidden[self._xp.arange(len(prompts)), self._xp.asarray([len(p) - 1 for p in prompts])]
        scores = self._xp.to_numpy(self._head(last, self._decoder.token_embedding))
        for i, utterance in enumerate(utterances):
            owner = self._begun(utterance, scores[i])
            if (result := self._result(owner)) is not None:
                finished.append(result)
                continue
            self._audio.join(of_row(memory.layers, of_audio[i], lengths[of_audio[i]]), owner.width)
            self._text.join(of_row(written, i, len(prompts[i])), owner.width)
            owner.rows = list(range(self.rows, self.rows + owner.width))
            self._owners += [owner] * owner.width
        return finished

    def step(self) -> list[Generated]:
        """Write one token in every row; returns the texts that it finished."""
        if not self._owners:
            return []
        if any(isinstance(owner, _Searched) for owner in self._owners):
            return self._book(self._xp.to_numpy(self._log_probs(self._last_tokens())))
        written = self._ahead or self._written(self._last_tokens())
        if self._look_ahead:
            self._ahead = self._written(written[0], ahead=1)
            # Nothing may read the slots when the next step starts to write, or MLX would copy all of them.
            self._xp.evaluate(*written)
            self._xp.start(*self._ahead)
        return self._book_greedy(*written)

    def _written(self, tokens: Array, ahead: int = 0) -> tuple[Array, Array]:
        """The most probable token after each of `tokens` (R,), and its log-probability."""
        scores = self._log_probs(tokens, ahead)
        best = scores.argmax(axis=-1)
        return best, self._xp.take_along_axis(scores, best[:, None], axis=-1)[:, 0]

    def _settled(self) -> list[Generated]:
        """Book the step under way, so that rows can change; returns the texts that it finished."""
        written, self._ahead = self._ahead, None
        return self._book_greedy(*written) if written else []

    def _book_greedy(self, tokens: Array, log_probs: Array) -> list[Generated]:
        for owner, token, log_prob in zip(self._owners, tokens.tolist(), log_probs.tolist(), strict=True):
            assert isinstance(owner, _Greedy)
            owner.position += 1
            owner.write(token, log_prob)
        return self._ended()

    def _book(self, scores: np.ndarray) -> list[Generated]:
        """Write a token in every row, beams' included, from log-probabilities (R, V)."""
        for owner in self._distinct_owners():
            owner.position += 1
            if isinstance(owner, _Greedy):
                owner.write_best(scores[owner.rows[0]])
            else:
                self._reorder(owner.rows, owner.beam.advance(scores[owner.rows]))
        return self._ended()

    def _ended(self) -> list[Generated]:
        finished = [result for owner in self._distinct_owners() if (result := self._result(owner)) is not None]
        for result in finished:
            self.drop(result.key)
        return finished

    def drop(self, key: int) -> None:
        """Free the rows of the text `key`, if it has any. The last rows move to the places that become empty."""
        order = list(range(self.rows))
        for row in sorted((r for r, o in enumerate(self._owners) if o.utterance.key == key), reverse=True):
            last = self.rows - 1
            self._text.leave(row)
            self._audio.leave(row)
            if row != last:
                mover = self._owners[last]
                mover.rows[mover.rows.index(last)] = row
                self._owners[row], order[row] = mover, order[last]
            self._owners.pop()
            order.pop()
        if not self._owners:
            self._ahead = None
            self._text.clear()
            self._audio.clear()
        elif self._ahead:
            tokens, log_probs = self._ahead
            kept = self._xp.asarray(order)
            self._ahead = tokens[kept], log_probs[kept]

    def _last_tokens(self) -> list[int]:
        tokens = [0] * self.rows
        for owner in self._distinct_owners():
            for row, token in zip(owner.rows, owner.last_tokens(), strict=True):
                tokens[row] = token
        return tokens

    def _log_probs(self, tokens: Array, ahead: int = 0) -> Array:
        """Log-probabilities (R, V) of what follows `tokens` (R,), which are `ahead` positions past the booked ones."""
        # A row may be full when the next step begins ahead of time; what that step writes is dropped.
        last = self._decoder.position_encoding.shape[0] - 1
        positions = [min(owner.position + ahead, last) for owner in self._owners]
        hidden = self._decoder.step(tokens, positions, self._text, self._audio)
        return self._head(hidden, self._decoder.token_embedding)

    def _begun(self, utterance: Utterance, scores: np.ndarray) -> _Greedy | _Searched:
        """A new utterance with its first token written; a beam's with one for each hypothesis."""
        position = len(utterance.prompt)
        nothing = float(np.exp(scores[self._silent]).sum())
        if utterance.beam_size == 1:
            owner = _Greedy(utterance, position, nothing)
            owner.write_best(scores)
            return owner
        beam = Beam(utterance.beam_size, position, utterance.length_penalty, *self._ends)
        beam.begin(scores)
        return _Searched(utterance, position, nothing, beam)

    def _result(self, owner: _Greedy | _Searched) -> Generated | None:
        """What `owner` has written, if it is finished."""
        key, limit = owner.utterance.key, owner.utterance.limit
        if isinstance(owner, _Greedy):
            if owner.tokens[-1] in self._ends:
                return Generated(key, owner.tokens[:-1], owner.log_probs[:-1], owner.nothing)
            return Generated(key, owner.tokens, owner.log_probs, owner.nothing) if len(owner.tokens) >= limit else None
        if owner.beam.finished or owner.beam.tokens.shape[1] >= limit:
            return Generated(key, *owner.beam.best(), owner.nothing)
        return None

    def _distinct_owners(self) -> list[_Greedy | _Searched]:
        return list({id(owner): owner for owner in self._owners}.values())

    def _reorder(self, rows: list[int], parents: np.ndarray) -> None:
        """Each of a beam's rows becomes what its parent's row was."""
        if (parents != np.arange(len(rows))).any():
            self._text.reorder(rows, [rows[p] for p in parents])

    def _padded(self, audios: list[Array]) -> tuple[Array, list[int]]:
        """Encodings (T, M) as (n, T, M), zero-padded on the right, and their lengths."""
        xp, lengths = self._xp, [audio.shape[0] for audio in audios]
        T = max(lengths)
        rows = [xp.pad(xp.asarray(audio), [(0, T - n), (0, 0)]) for audio, n in zip(audios, lengths, strict=True)]
        return xp.stack(rows), lengths


def new_token_limit(total_steps: int, prompt_length: int, max_sequence_length: int, max_generation_delta: int) -> int:
    """NeMo's longest output for an audio of `total_steps` encoder steps; 0 if the prompt alone is too long."""
    longest = min(max_sequence_length, total_steps + max_generation_delta)
    return max(0, longest - prompt_length + 1)
