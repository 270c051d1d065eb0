"""Reading several tokens of each text in one pass: a prompt, then a draft of what follows it."""

from collections.abc import Collection

import numpy as np

from model.arrays import Array
from model.canary.decoder import CrossMemory, Decoder, Head, Watched, of_row
from model.canary.rows import Greedy, Searched, Utterance

# The most tokens of a draft that one pass checks.
STRETCH = 32
# A rest of a draft that is shorter is not checked: a pass costs as much as two or three steps.
SHORTEST = 3
# The draft is dropped after so many passes in a row that found none of it right.
PATIENCE = 2


class Reading:
    """A text whose prompt, or a draft of what follows it, is being read.

    A pass reads the tokens that are certain, and then a stretch of the draft. A token of the draft is written if it is
    the most probable one after those before it, as greedy search would have written it. In place of the first wrong one
    the model's own token is written, and the next pass continues from there. The places after it have scores already,
    computed as if the wrong token were right. A time that is most probable there is a better guess than the draft's and
    replaces it (a Jacobi iteration). The words of the draft stay: after a wrong time the model often repeats or skips
    one.

    audio: cross-attention's keys and values (1, 2H, T, d) by layer, None before they are computed; layers:
    self-attention's (1, 2H, n, d) of the first n tokens, [] for none; owner: what is written, None before the first
    pass; seen: what the tokens of the last pass attended to (1 + n, T), from the last certain one on, if asked for.
    """

    def __init__(self, utterance: Utterance):
        self.utterance = utterance
        self.audio = utterance.memory
        self.layers = utterance.known()
        self.owner: Greedy | Searched | None = None
        self.seen: Array | None = None
        self._draft = utterance.draft()
        self._failed = 0

    @property
    def unread(self) -> list[int]:
        """The certain tokens that have not been read yet."""
        written = self.owner.tokens if isinstance(self.owner, Greedy) else []
        known = self.layers[0].shape[2] if self.layers else 0
        return [*self.utterance.prompt, *written][known:]

    @property
    def stretch(self) -> list[int]:
        """The tokens of the draft that the next pass checks. A pass writes one more."""
        written = len(self.owner.tokens) if isinstance(self.owner, Greedy) else 0
        return self._draft[: max(0, min(STRETCH, self.utterance.limit - written - 1))]

    @property
    def has_draft(self) -> bool:
        """Whether another pass is worth its cost."""
        return len(self._draft) >= SHORTEST and self._failed < PATIENCE

    def write(self, owner: Greedy, scores: np.ndarray, ends: Collection[int] = (), times: Collection[int] = ()) -> None:
        """Write as much of the stretch as is right, and the token after it.

        scores: (1 + n, V), see `Reader.read`; ends: the tokens that end a text; times: those that tell a time.
        """
        best, stretch = scores.argmax(axis=1).tolist(), self.stretch
        right = next((n for n, guess in enumerate(stretch) if best[n] != guess or guess in ends), len(stretch))
        for token, row in zip(best[: right + 1], scores, strict=False):
            owner.write(token, float(row[token]))
        if self.seen is not None:
            owner.attention.append(self.seen[: right + 1])
        rest = self._draft[right + 1 :]
        for place, (guess, found) in enumerate(zip(rest, best[right + 1 :], strict=False)):
            if guess in times and found in times:
                rest[place] = found
        self._draft = rest
        self._failed = 0 if right else self._failed + 1

    def forget_after(self, position: int) -> None:
        """Drop keys and values of tokens that turned out wrong."""
        self.layers = of_row(self.layers, 0, 0, position)


class Reader:
    """Reads the next tokens of several texts in one pass. pad_id: pads those that have fewer."""

    def __init__(self, decoder: Decoder, head: Head, pad_id: int):
        self._decoder = decoder
        self._head = head
        self._pad_id = pad_id

    def read(self, texts: list[Reading]) -> list[np.ndarray]:
        """One pass over all of them.

        Returns log-probabilities (1 + n, V) of each: after its certain tokens, and after each of the n tokens of its
        draft's stretch.
        """
        xp = self._decoder.xp
        memory, of_audio, lengths = self._memory(texts)
        past = self._decoder.past_of([text.layers for text in texts])
        known = past.lengths if past else [0] * len(texts)
        drafts = [text.stretch for text in texts]
        fed = [[*text.unread, *draft] for text, draft in zip(texts, drafts, strict=True)]
        longest = max(map(len, fed))
        tokens = [each + [self._pad_id] * (longest - len(each)) for each in fed]
        asking = [i for i, text in enumerate(texts) if text.utterance.asks_for_attention]
        audio = Watched(memory.of_rows(of_audio), self._decoder.alignment_layer, asking)
        hidden, written = self._decoder.prefill(tokens, audio, past)
        seen = dict(zip(asking, audio.seen, strict=True))
        # What follows the certain tokens, and each token of the draft.
        first = [len(each) - len(draft) - 1 for each, draft in zip(fed, drafts, strict=True)]
        places = [(i, first[i] + k) for i, draft in enumerate(drafts) for k in range(len(draft) + 1)]
        rows, columns = (xp.asarray(each) for each in zip(*places, strict=True))
        log_probs = self._head(hidden[rows, columns], self._decoder.token_embedding)
        xp.evaluate(log_probs, *audio.seen)
        for i, text in enumerate(texts):
            length, start = lengths[of_audio[i]], max(known) - known[i]
            text.audio = of_row(memory.layers, of_audio[i], 0, length)
            text.layers = of_row(written, i, start, start + known[i] + len(fed[i]))
            text.seen = seen[i][first[i] :, :length] if i in seen else None
        ends = np.cumsum([len(draft) + 1 for draft in drafts])
        return np.split(xp.to_numpy(log_probs), ends[:-1])

    def _memory(self, texts: list[Reading]) -> tuple[CrossMemory, list[int], list[int]]:
        """What they attend to, one row for each audio; the row of each text, and each row's encoder steps."""
        # Texts of one audio, such as a transcript and a translation, share its cross-attention memory.
        audios = {id(text.utterance.encoded): text for text in texts}
        order = sorted(audios, key=lambda audio: audios[audio].audio is not None)
        memories = [self._decoder.memory_of(text.audio) for text in audios.values() if text.audio is not None]
        if new := [text.utterance.encoded for text in audios.values() if text.audio is None]:
            memories.insert(0, self._decoder.cross_memory(*self._padded(new)))
        lengths = [audios[audio].utterance.encoded.shape[0] for audio in order]
        return CrossMemory.together(memories), [order.index(id(text.utterance.encoded)) for text in texts], lengths

    def _padded(self, audios: list[Array]) -> tuple[Array, list[int]]:
        """Encodings (T, M) as (n, T, M), zero-padded on the right, and their lengths."""
        xp, lengths = self._decoder.xp, [audio.shape[0] for audio in audios]
        T = max(lengths)
        rows = [xp.pad(xp.asarray(audio), [(0, T - n), (0, 0)]) for audio, n in zip(audios, lengths, strict=True)]
        return xp.stack(rows), lengths
