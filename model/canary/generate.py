"""The token loop: a running batch of rows, which utterances join and leave at any step.

Knows the decoder and token ids; knows no text, audio or request. A row's result never depends on the others.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from model.arrays import Array
from model.canary.beam import Beam
from model.canary.decoder import Decoder, Head, TextMemory, Watched
from model.canary.reading import Reader, Reading
from model.canary.rows import Greedy, Searched, Utterance
from model.decoding import Generated


@dataclass
class _Step:
    """A step's tokens (R,) and their log-probabilities (R,); by row that asks for it, what it attended to (1, T)."""

    tokens: Array
    log_probs: Array
    seen: dict[int, Array]

    @property
    def arrays(self) -> list[Array]:
        return [self.tokens, self.log_probs, *self.seen.values()]


class RunningBatch:
    """Rows that are decoded side by side, a token at a time, and texts whose drafts are checked beside them.

    time_ids: the tokens that tell a time; those of a draft are corrected, see `Reading`. look_ahead: prepare each step
    while the last one is computed, and start it before that one's tokens are read, so that a GPU hardly waits for
    Python. A row that has ended is then stepped once for nothing. The default is to do so with arrays that are computed
    in the background.
    """

    def __init__(
        self,
        decoder: Decoder,
        head: Head,
        end_id: int,
        pad_id: int,
        no_speech_id: int | None = None,
        time_ids: Collection[int] = (),
        look_ahead: bool | None = None,
    ):
        self._xp = decoder.xp
        self._look_ahead = self._xp.CONCURRENT if look_ahead is None else look_ahead
        # A step under way.
        self._ahead: _Step | None = None
        self._decoder = decoder
        self._head = head
        self._ends = (end_id, pad_id)
        self._times = frozenset(time_ids)
        self._silent = [end_id] if no_speech_id is None else [end_id, no_speech_id]
        self._text = decoder.empty_text_slots()
        self._audio = decoder.empty_audio_slots()
        self._reader = Reader(decoder, head, pad_id)
        # By row.
        self._owners: list[Greedy | Searched] = []
        # Texts that are not stepped yet: their drafts are being read.
        self._drafted: list[Reading] = []

    @property
    def rows(self) -> int:
        """Rows in use, one of them for each text whose draft is being read."""
        return len(self._owners) + len(self._drafted)

    def join(self, utterances: list[Utterance]) -> list[Generated]:
        """Read the prompts of `utterances` together and add their rows.

        Returns the finished ones: those that ended with what this pass wrote, and those that a step under way ended.
        """
        return self._read([Reading(utterance) for utterance in utterances])

    def _read(self, texts: list[Reading]) -> list[Generated]:
        """One pass over what each text has to read. A text without a draft left joins the rows; the others wait for the
        next pass."""
        finished, stepping = [], []
        for text, scores in zip(texts, self._reader.read(texts), strict=True):
            owner = self._write(text, scores)
            text.forget_after(owner.position)
            if (result := self._result(owner)) is not None:
                finished.append(self._with_memory(result, owner, text.layers))
            elif text.has_draft:
                self._drafted.append(text)
            else:
                stepping.append((text, owner))
        if stepping:
            finished += self._settled()
        for text, owner in stepping:
            assert text.audio is not None
            rows = len(self._owners)
            self._audio.join(text.audio, owner.width)
            self._text.join(text.layers, owner.width)
            owner.rows = list(range(rows, rows + owner.width))
            self._owners += [owner] * owner.width
        return finished

    def _write(self, text: Reading, scores: np.ndarray) -> Greedy | Searched:
        """Write what a pass over `text` found. scores: (1 + n, V), see `Reader.read`."""
        if text.owner is None:
            text.owner = self._begun(text.utterance, scores[0])
        if isinstance(text.owner, Greedy):
            text.write(text.owner, scores, self._ends, self._times)
        return text.owner

    def _begun(self, utterance: Utterance, scores: np.ndarray) -> Greedy | Searched:
        """An empty text, or a beam with the first token of each hypothesis. scores: (V,), after the prompt."""
        nothing = float(np.exp(scores[self._silent]).sum())
        if utterance.beam_size == 1:
            return Greedy(utterance, nothing)
        beam = Beam(utterance.beam_size, len(utterance.prompt), utterance.length_penalty, *self._ends)
        beam.begin(scores)
        return Searched(utterance, nothing, beam)

    def step(self) -> list[Generated]:
        """Write a token in every row, and what a pass finds of each draft; returns the texts that are finished."""
        finished = self._stepped() if self._owners else []
        if self._drafted:
            texts, self._drafted = self._drafted, []
            finished += self._read(texts)
        return finished

    def _stepped(self) -> list[Generated]:
        if any(isinstance(owner, Searched) for owner in self._owners):
            scores, seen = self._log_probs(self._last_tokens())
            self._xp.evaluate(scores, *seen.values())
            return self._book(self._xp.to_numpy(scores), seen)
        written = self._ahead or self._written(self._last_tokens())
        if self._look_ahead:
            self._ahead = self._written(written.tokens, ahead=1)
        # Nothing may read the slots when the next step starts to write, or MLX would copy all of them.
        self._xp.evaluate(*written.arrays)
        if self._ahead:
            self._xp.start(*self._ahead.arrays)
        return self._book_greedy(written)

    def _written(self, tokens: Array, ahead: int = 0) -> _Step:
        """The most probable token after each of `tokens` (R,), and its log-probability."""
        scores, seen = self._log_probs(tokens, ahead)
        best = scores.argmax(axis=-1)
        return _Step(best, self._xp.take_along_axis(scores, best[:, None], axis=-1)[:, 0], seen)

    def _settled(self) -> list[Generated]:
        """Book the step under way, so that rows can change; returns the texts that it finished."""
        written, self._ahead = self._ahead, None
        return self._book_greedy(written) if written else []

    def _book_greedy(self, step: _Step) -> list[Generated]:
        pairs = zip(self._owners, step.tokens.tolist(), step.log_probs.tolist(), strict=True)
        for row, (owner, token, log_prob) in enumerate(pairs):
            assert isinstance(owner, Greedy)
            owner.write(token, log_prob)
            if row in step.seen:
                owner.attention.append(step.seen[row])
        return self._ended()

    def _book(self, scores: np.ndarray, seen: dict[int, Array]) -> list[Generated]:
        """Write a token in every row, beams' included, from log-probabilities (R, V)."""
        for owner in self._distinct_owners():
            if isinstance(owner, Greedy):
                (row,) = owner.rows
                owner.write_best(scores[row])
                owner.attention += [seen[row]] if row in seen else []
            else:
                self._reorder(owner.rows, owner.beam.advance(scores[owner.rows]))
        return self._ended()

    def _ended(self) -> list[Generated]:
        finished = []
        for owner in self._distinct_owners():
            if (result := self._result(owner)) is not None:
                remembered = self._text.copied(owner.rows[0], owner.position) if owner.utterance.remember else []
                finished.append(self._with_memory(result, owner, remembered))
        for result in finished:
            self.drop(result.key)
        return finished

    def _with_memory(self, result: Generated, owner: Greedy | Searched, layers: list[Array]) -> Generated:
        """`result` with what a later text goes on from, if that was asked for. layers: the text's keys and values."""
        if not owner.utterance.remember:
            return result
        self._xp.evaluate(*layers)
        return replace(result, memory=TextMemory(owner.utterance.prompt + result.tokens, layers))

    def drop(self, key: int) -> None:
        """Free the rows of the text `key`, if it has any. The last rows move to the places that become empty."""
        self._drafted = [text for text in self._drafted if text.utterance.key != key]
        order = list(range(len(self._owners)))
        for row in sorted((r for r, o in enumerate(self._owners) if o.utterance.key == key), reverse=True):
            last = len(self._owners) - 1
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
            step, kept = self._ahead, self._xp.asarray(order)
            seen = {row: step.seen[old] for row, old in enumerate(order) if old in step.seen}
            self._ahead = _Step(step.tokens[kept], step.log_probs[kept], seen)

    def _last_tokens(self) -> list[int]:
        tokens = [0] * len(self._owners)
        for owner in self._distinct_owners():
            for row, token in zip(owner.rows, owner.last_tokens(), strict=True):
                tokens[row] = token
        return tokens

    def _log_probs(self, tokens: Array, ahead: int = 0) -> tuple[Array, dict[int, Array]]:
        """Log-probabilities (R, V) of what follows `tokens` (R,), which are `ahead` positions past the booked ones.

        Also, of each row that asks for it, what it attended to (1, T).
        """
        # A row may be full when the next step begins ahead of time; what that step writes is dropped.
        last = self._decoder.position_encoding.shape[0] - 1
        positions = [min(owner.position + ahead, last) for owner in self._owners]
        asking = [row for row, owner in enumerate(self._owners) if owner.utterance.asks_for_attention]
        audio = Watched(self._audio, self._decoder.alignment_layer, asking) if asking else self._audio
        hidden = self._decoder.step(tokens, positions, self._text, audio)
        seen = dict(zip(asking, audio.seen, strict=True)) if isinstance(audio, Watched) else {}
        return self._head(hidden, self._decoder.token_embedding), seen

    def _result(self, owner: Greedy | Searched) -> Generated | None:
        """What `owner` has written, if it is finished."""
        key, limit = owner.utterance.key, owner.utterance.limit
        if isinstance(owner, Greedy):
            ended = owner.tokens[-1] in self._ends
            if not ended and len(owner.tokens) < limit:
                return None
            count = len(owner.tokens) - ended
            attention = None
            if owner.attention:
                attention = self._xp.to_numpy(self._xp.concatenate(owner.attention))[:count]
            return Generated(key, owner.tokens[:count], owner.log_probs[:count], owner.nothing, attention=attention)
        if owner.beam.finished or owner.beam.tokens.shape[1] >= limit:
            return Generated(key, *owner.beam.best(), owner.nothing)
        return None

    def _distinct_owners(self) -> list[Greedy | Searched]:
        return list({id(owner): owner for owner in self._owners}.values())

    def _reorder(self, rows: list[int], parents: np.ndarray) -> None:
        """Each of a beam's rows becomes what its parent's row was."""
        if (parents != np.arange(len(rows))).any():
            self._text.reorder(rows, [rows[p] for p in parents])


def new_token_limit(total_steps: int, prompt_length: int, max_sequence_length: int, max_generation_delta: int) -> int:
    """NeMo's longest output for an audio of `total_steps` encoder steps; 0 if the prompt alone is too long."""
    longest = min(max_sequence_length, total_steps + max_generation_delta)
    return max(0, longest - prompt_length + 1)
