"""When each word of a known text was spoken, from canary-1b-v2's second model: a FastConformer with a CTC head.

Source: NeMo's get_forced_aligned_timestamps_with_external_model; the times are the same, quirks included.
"""

from pathlib import Path
from typing import Self

import numpy as np
from sentencepiece import SentencePieceProcessor

from model import weights
from model.config import WEIGHTS_FILE, AlignerConfig, read_config
from model.encoder import FastConformer
from model.features import LogMel
from model.layers import Layer, Linear
from model.subsampling import subsampled
from model.tokenizer import load_pieces

_PUNCTUATION = {",", ".", "!", "?"}
# NeMo's log-probability of the impossible.
_NEVER = np.float32(-3.4e38)


class Aligner(Layer):
    """The timestamps model. It belongs to the thread that loaded it."""

    def __init__(self, config: AlignerConfig, pieces: SentencePieceProcessor):
        super().__init__()
        self.config = config
        self._pieces = pieces
        self.preprocessor = LogMel(config.preprocessor)
        self.encoder = FastConformer(config.encoder)
        self.head = Linear(config.encoder.d_model, config.vocab_size + 1)

    @classmethod
    def load(cls, folder: Path, dtype: str) -> Self:
        """The aligner in a converted model's `aligner/`. Raises ConfigError, TokenizerError or WeightsError."""
        config = read_config(folder, AlignerConfig)
        aligner = cls(config, load_pieces(folder / next(iter(config.tokenizer.models.values()))))
        weights.load(aligner, folder / WEIGHTS_FILE, dtype, config.quantization)
        return aligner

    def log_probs(self, waveform: np.ndarray) -> np.ndarray:
        """(N,) float32 at the model's rate → (T', V + 1), the blank last."""
        mel, _ = self.preprocessor(waveform[None], [len(waveform)])
        frames = len(waveform) // self.config.preprocessor.hop_length
        states = self.encoder(mel[:, :frames])[:, : subsampled(frames)]
        return self.xp.to_numpy(self.xp.log_softmax(self.head(states))[0])

    def word_times(self, waveform: np.ndarray, text: str) -> list[tuple[float, float]] | None:
        """(start, end) in seconds of each word of `text`, which are separated by single spaces.

        None if the text has more tokens than the audio has encoder steps.
        """
        if not text or len(waveform) < self.config.preprocessor.hop_length:
            return None
        words = [self._pieces.encode(word) for word in text.split(" ")]
        log_probs = self.log_probs(waveform)
        if len(self._pieces.encode(text)) > len(log_probs) or sum(map(len, words)) > len(log_probs):
            return None
        path = ctc_alignment(log_probs, [token for word in words for token in word])
        step_s = self.config.preprocessor.window_stride * self.config.encoder.subsampling_factor
        times, first = [], 0
        for word in words:
            kept = len(word)
            # Punctuation at the end of a word makes no sound, so it takes no time.
            while kept and self._pieces.id_to_piece(word[kept - 1]) in _PUNCTUATION:
                kept -= 1
            steps = path[first : first + len(word)]
            end = steps[kept - 1][1] + 1 if kept else steps[0][0]
            times.append((round(steps[0][0] * step_s, 2), round(end * step_s, 2)))
            first += len(word)
        return times


def ctc_alignment(log_probs: np.ndarray, tokens: list[int]) -> list[tuple[int, int]]:
    """The first and the last step of each of `tokens` on the most probable path.

    log_probs: (T, V + 1) float32, the blank last; len(tokens) ≤ T.
    """
    T, blank = len(log_probs), log_probs.shape[1] - 1
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    # A path may skip the blank between two tokens, unless they are equal: those would merge.
    skips = np.zeros(len(states), bool)
    skips[2:] = states[2:] != states[:-2]
    score = np.full(len(states), _NEVER)
    score[:2] = log_probs[0, states[:2]]
    moves = np.zeros((T, len(states)), np.int8)
    candidates = np.full((3, len(states)), _NEVER)
    with np.errstate(over="ignore"):
        for t in range(1, T):
            candidates[0] = score
            candidates[1, 1:] = score[:-1]
            candidates[2, 2:] = np.where(skips[2:], score[:-2], _NEVER)
            reached = candidates + log_probs[t, states]
            moves[t] = reached.argmax(axis=0)
            score = reached.max(axis=0)
    state = len(states) - 2 + int(score[-2:].argmax())
    spans: dict[int, tuple[int, int]] = {}
    for t in range(T - 1, -1, -1):
        spans[state] = (t, spans.get(state, (t, t))[1])
        state -= int(moves[t, state])
    return [spans[2 * i + 1] for i in range(len(tokens))]
