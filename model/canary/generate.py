"""The token loop: a running batch of rows, which utterances join and leave at any step.

Knows the decoder and token ids; knows no text, audio or request. A row's result never depends on the others.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from model.arrays import Array
from model.canary.beam import Beam
from model.canary.decoder import CrossMemory, Decoder, Head, TextMemory, Watched, of_row
from model.decoding import Generated


@dataclass(frozen=True)
class Utterance:
    """One text to write from an encoded audio.

    key: the caller's name for it; encoded: (T, M), all of it real; prompt: token ids; limit: the most new tokens;
    memory: cross-attention's keys and values of `encoded` (1, 2H, T, d) by layer, if they are known.
    Of a greedy search, attention: also tell which encoder steps each token was written from; before: the text as it was
    written last time; remember: also give the next `before`.

    Where `before` begins like the prompt, its keys and values are used instead of computing them. What it has after the
    prompt is a draft: the prefill checks how much of it would be written now. So a draft changes no token.
    """

    key: int
    encoded: Array
    prompt: list[int]
    limit: int
    beam_size: int = 1
    length_penalty: float = 0.0
    memory: list[Array] | None = None
    attention: bool = False
    before: TextMemory | None = None
    remember: bool = False

    @property
    def asks_for_attention(self) -> bool:
        return self.attention and self.beam_size == 1

    def known(self) -> list[Array]:
        """Keys and values (1, 2H, n, d) by layer of the first tokens, from last time; [] if there are none."""
        if self.before is None or not self.before.layers:
            return []
        # The last one is read again: what follows it is to be found out.
        known = min(self.before.shared(self.prompt), self.before.layers[0].shape[2], len(self.prompt) - 1)
        return of_row(self.before.layers, 0, 0, known) if known else []

    def draft(self) -> list[int]:
        """What followed the prompt last time."""
        if self.before is None or self.beam_size > 1 or self.before.shared(self.prompt) < len(self.prompt):
            return []
        return self.before.tokens[len(self.prompt) :][: max(0, self.limit - 1)]


@dataclass
class _Greedy:
    """A row that is decoded greedily: its tokens, and the position of the next one.

    attention: (n, T) of the next n tokens each, if the utterance asks for it.
    """

    utterance: Utterance
    position: int
    nothing: float
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    attention: list[Array] = field(default_factory=list)
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


@dataclass
class _Step:
    """A step's tokens (R,) and their log-probabilities (R,); by row that asks for it, what it attended to (1, T)."""

    tokens: Array
    log_probs: Array
    seen: dict[int, Array]

    @property
    def arrays(self) -> list[Array]:
        return [self.tokens, self.log_probs, *self.seen.values()]


@dataclass(frozen=True)
class _Prefilled:
    """A text that has begun, and keys and values (1, 2H, n, d) by layer: of its audio, and of the text so far."""

    owner: _Greedy | _Searched
    audio: list[Array]
    text: list[Array]


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
        # A step under way.
        self._ahead: _Step | None = None
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
        for each in self._prefilled(utterances):
            owner = each.owner
            if (result := self._result(owner)) is not None:
                finished.append(self._with_memory(result, owner, each.text))
                continue
            self._audio.join(each.audio, owner.width)
            self._text.join(each.text, owner.width)
            owner.rows = list(range(self.rows, self.rows + owner.width))
            self._owners += [owner] * owner.width
        return finished

    def _prefilled(self, utterances: list[Utterance]) -> list[_Prefilled]:
        """Every prompt read, and every draft checked, in one pass."""
        xp = self._xp
        memory, of_audio, lengths = self._memory(utterances)
        past = self._decoder.past_of([u.known() for u in utterances])
        known = past.lengths if past else [0] * len(utterances)
        drafts = [u.draft() for u in utterances]
        fed = [[*u.prompt[n:], *draft] for u, n, draft in zip(utterances, known, drafts, strict=True)]
        longest = max(map(len, fed))
        tokens = [each + [self._ends[1]] * (longest - len(each)) for each in fed]
        asking = [i for i, u in enumerate(utterances) if u.asks_for_attention]
        audio = Watched(memory.of_rows(of_audio), self._decoder.alignment_layer, asking)
        hidden, written = self._decoder.prefill(tokens, audio, past)
        seen = dict(zip(asking, audio.seen, strict=True))
        # What follows each prompt, and each token of its draft.
        first = [len(each) - len(draft) - 1 for each, draft in zip(fed, drafts, strict=True)]
        places = [(i, first[i] + k) for i, draft in enumerate(drafts) for k in range(len(draft) + 1)]
        rows, columns = (xp.asarray(each) for each in zip(*places, strict=True))
        log_probs = self._head(hidden[rows, columns], self._decoder.token_embedding)
        xp.evaluate(log_probs, *audio.seen)
        ends = np.cumsum([len(draft) + 1 for draft in drafts])
        prefilled = []
        for i, scores in enumerate(np.split(xp.to_numpy(log_probs), ends[:-1])):
            owner = self._begun(utterances[i], scores, drafts[i])
            length, start = lengths[of_audio[i]], max(known) - known[i]
            if isinstance(owner, _Greedy) and i in seen:
                owner.attention.append(seen[i][first[i] : first[i] + len(owner.tokens), :length])
            text = of_row(written, i, start, start + owner.position)
            prefilled.append(_Prefilled(owner, of_row(memory.layers, of_audio[i], 0, length), text))
        return prefilled

    def step(self) -> list[Generated]:
        """Write one token in every row; returns the texts that it finished."""
        if not self._owners:
            return []
        if any(isinstance(owner, _Searched) for owner in self._owners):
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
            assert isinstance(owner, _Greedy)
            owner.position += 1
            owner.write(token, log_prob)
            if row in step.seen:
                owner.attention.append(step.seen[row])
        return self._ended()

    def _book(self, scores: np.ndarray, seen: dict[int, Array]) -> list[Generated]:
        """Write a token in every row, beams' included, from log-probabilities (R, V)."""
        for owner in self._distinct_owners():
            owner.position += 1
            if isinstance(owner, _Greedy):
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

    def _with_memory(self, result: Generated, owner: "_Greedy | _Searched", layers: list[Array]) -> Generated:
        """`result` with what a later text goes on from, if that was asked for. layers: the text's keys and values."""
        if not owner.utterance.remember:
            return result
        self._xp.evaluate(*layers)
        return replace(result, memory=TextMemory(owner.utterance.prompt + result.tokens, layers))

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
            step, kept = self._ahead, self._xp.asarray(order)
            seen = {row: step.seen[old] for row, old in enumerate(order) if old in step.seen}
            self._ahead = _Step(step.tokens[kept], step.log_probs[kept], seen)

    def _last_tokens(self) -> list[int]:
        tokens = [0] * self.rows
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

    def _begun(self, utterance: Utterance, scores: np.ndarray, draft: list[int]) -> _Greedy | _Searched:
        """A new utterance with what is known of its text: its first token, or one for each hypothesis of a beam.

        scores: (1 + len(draft), V) log-probabilities after the prompt, and after each token of the draft. The part of
        the draft that would be written is written, and the token after it.
        """
        position = len(utterance.prompt)
        nothing = float(np.exp(scores[0, self._silent]).sum())
        if utterance.beam_size > 1:
            beam = Beam(utterance.beam_size, position, utterance.length_penalty, *self._ends)
            beam.begin(scores[0])
            return _Searched(utterance, position, nothing, beam)
        owner = _Greedy(utterance, position, nothing)
        owner.write_best(scores[0])
        for guess, following in zip(draft, scores[1:], strict=True):
            if owner.tokens[-1] != guess or guess in self._ends:
                break
            owner.position += 1
            owner.write_best(following)
        return owner

    def _result(self, owner: _Greedy | _Searched) -> Generated | None:
        """What `owner` has written, if it is finished."""
        key, limit = owner.utterance.key, owner.utterance.limit
        if isinstance(owner, _Greedy):
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

    def _distinct_owners(self) -> list[_Greedy | _Searched]:
        return list({id(owner): owner for owner in self._owners}.values())

    def _reorder(self, rows: list[int], parents: np.ndarray) -> None:
        """Each of a beam's rows becomes what its parent's row was."""
        if (parents != np.arange(len(rows))).any():
            self._text.reorder(rows, [rows[p] for p in parents])

    def _memory(self, utterances: list[Utterance]) -> tuple[CrossMemory, list[int], list[int]]:
        """What they attend to, one row for each audio; the row of each utterance, and each row's encoder steps."""
        # Texts of one audio, such as a transcript and a translation, share its cross-attention memory.
        audios = {id(u.encoded): u for u in utterances}
        order = sorted(audios, key=lambda audio: audios[audio].memory is not None)
        known = [u.memory for u in audios.values() if u.memory is not None]
        memories = [self._decoder.memory_of(layers) for layers in known]
        if new := [u.encoded for u in audios.values() if u.memory is None]:
            memories.insert(0, self._decoder.cross_memory(*self._padded(new)))
        lengths = [audios[audio].encoded.shape[0] for audio in order]
        return CrossMemory.together(memories), [order.index(id(u.encoded)) for u in utterances], lengths

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
