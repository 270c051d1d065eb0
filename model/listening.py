"""What every family's model begins with: waveforms → features → encoder vectors."""

import time

import numpy as np

from model.arrays import Array
from model.config import EncoderConfig, PreprocessorConfig
from model.decoding import Encoded
from model.encoder import FastConformer, subsampled
from model.features import LogMel
from model.layers import Layer

# While audio grows, a step is computed anew until so much audio follows it.
SETTLED_S = 1.0
# All steps are computed anew when there are so many times as many as the last time.
GROWTH = 1.5


class Listener(Layer):
    """A preprocessor and an encoder. A family's model is one, and adds what turns vectors into text."""

    def __init__(self, preprocessor: PreprocessorConfig, encoder: EncoderConfig):
        super().__init__()
        self._hop_length = preprocessor.hop_length
        self._steps_to_settle = round(SETTLED_S / (preprocessor.window_stride * encoder.subsampling_factor))
        self.preprocessor = LogMel(preprocessor)
        self.encoder = FastConformer(encoder)

    @property
    def dtype(self) -> str:
        """What it computes in: "float32", "bfloat16" or "float16"."""
        return str(self.encoder.layers[0].norm_out.weight.dtype).removeprefix("mlx.core.")

    @property
    def encodes_together(self) -> bool:
        """True if rows are computed side by side. Otherwise padding would only cost time."""
        return self.xp.CONCURRENT

    def features(self, waveforms: list[np.ndarray]) -> tuple[Array, Array]:
        """Waveforms of any lengths → log-mel (B, T, n_mels) float32 and the valid frames (B,)."""
        lengths = [len(w) for w in waveforms]
        padded = np.zeros((len(waveforms), max(lengths)), np.float32)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
        return self.preprocessor(padded, lengths)

    def encode(self, mel: Array, lengths: Array = None, local: tuple[int, int] | None = None) -> Array:
        """(B, T, n_mels) and the valid frames (B,), or None if all are → (B, T', M), what text is written from.

        local: see `FastConformer`. Steps of a row past its first `subsampled(length)` are meaningless.
        """
        return self.projected(self.encoder(mel, lengths, local))

    def projected(self, vectors: Array) -> Array:
        """The encoder's vectors (…, D) as text is written from them: (…, M)."""
        return vectors

    def encoded_together(self, waveforms: list[np.ndarray], local: tuple[int, int] | None = None) -> list[Encoded]:
        """The encoding of each waveform as it is, computed in one padded batch. local: see `FastConformer`."""
        began = time.monotonic()
        mel, lengths = self.features(waveforms)
        self.xp.evaluate(mel)
        had_features = time.monotonic()
        frames = [len(w) // self._hop_length for w in waveforms]
        # Without the frame after the last valid one, which is zero, equal lengths need no masks.
        mel = mel[:, : max(frames)]
        encoded = self.encode(mel, None if min(frames) == max(frames) else lengths, local)
        self.xp.evaluate(encoded)
        times = had_features - began, time.monotonic() - had_features
        # NeMo's length limit counts the frame after the last valid one.
        return [Encoded(encoded[i, : subsampled(n)], subsampled(n + 1), *times) for i, n in enumerate(frames)]

    def encoded_further(self, waveform: np.ndarray, before: Encoded | None) -> Encoded:
        """The encoding of audio (N,) that goes on growing: exact at first, then only what is new since `before`.

        Steps that SETTLED_S of audio followed are not computed again: the next ones attend to their keys and values.
        """
        began = time.monotonic()
        mel, _ = self.features([waveform])
        self.xp.evaluate(mel)
        had_features = time.monotonic()
        frames = len(waveform) // self._hop_length
        steps, past = subsampled(frames), before.past if before else None
        if past and not past.steps < steps < GROWTH * past.whole:
            past = None
        settled = max(past.steps if past else 0, steps - self._steps_to_settle)
        vectors, later = self.encoder.grown(mel[:, :frames], past, settled)
        vectors = self.projected(vectors)
        if before and past:
            vectors = self.xp.concatenate([before.vectors[: past.steps], vectors[0]])[None]
        self.xp.evaluate(vectors, *(each for layer in later.layers for each in (layer.kv, layer.gated)))
        times = had_features - began, time.monotonic() - had_features
        return Encoded(vectors[0], subsampled(frames + 1), *times, past=later, reused=past.steps if past else 0)
