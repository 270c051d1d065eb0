"""What every family's model begins with: waveforms → features → encoder vectors."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from model.arrays import Array
from model.config import EncoderConfig, PreprocessorConfig
from model.decoding import Encoded
from model.encoder import FastConformer
from model.features import LogMel
from model.growing import EncoderPast
from model.layers import Layer
from model.subsampling import subsampled

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

    def encode(
        self,
        mel: Array,
        lengths: Array = None,
        local: tuple[int, int] | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> Array:
        """(B, T, n_mels) and the valid frames (B,), or None if all are → (B, T', M), what text is written from.

        local, between_layers: see `FastConformer`. Steps of a row past its first `subsampled(length)` are meaningless.
        """
        return self.projected(self.encoder(mel, lengths, local, between_layers))

    def projected(self, vectors: Array) -> Array:
        """The encoder's vectors (…, D) as text is written from them: (…, M)."""
        return vectors

    def encoded_together(
        self,
        waveforms: list[np.ndarray],
        local: tuple[int, int] | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> list[Encoded]:
        """The encoding of each waveform as it is, computed in one padded batch. For the rest see `FastConformer`."""
        began = time.monotonic()
        mel, lengths = self.features(waveforms)
        self.xp.evaluate(mel)
        had_features = time.monotonic()
        frames = [len(w) // self._hop_length for w in waveforms]
        # Without the frame after the last valid one, which is zero, equal lengths need no masks.
        mel = mel[:, : max(frames)]
        encoded = self.encode(mel, None if min(frames) == max(frames) else lengths, local, between_layers)
        self.xp.evaluate(encoded)
        times = had_features - began, time.monotonic() - had_features
        # NeMo's length limit counts the frame after the last valid one.
        return [Encoded(encoded[i, : subsampled(n)], subsampled(n + 1), *times) for i, n in enumerate(frames)]

    def encoded_further(self, waveforms: list[np.ndarray], before: list[Encoded | None]) -> list[Encoded]:
        """The encodings of audios (N,) that go on growing: exact at first, then only what is new since `before`.

        Steps that SETTLED_S of audio followed are not computed again: the next ones attend to their keys and values.
        """
        began = time.monotonic()
        mels = [self.features([waveform])[0] for waveform in waveforms]
        self.xp.evaluate(*mels)
        had_features = time.monotonic()
        frames = [len(waveform) // self._hop_length for waveform in waveforms]
        steps = [subsampled(n) for n in frames]
        pasts = [self._past(each, n) for each, n in zip(before, steps, strict=True)]
        settled = [
            max(past.steps if past else 0, n - self._steps_to_settle) for past, n in zip(pasts, steps, strict=True)
        ]
        grown = self.encoder.grown([mel[:, :n] for mel, n in zip(mels, frames, strict=True)], pasts, settled)
        encodings = []
        for each, past, (new, later), n in zip(before, pasts, grown, frames, strict=True):
            vectors = self.projected(new)[0]
            if each and past:
                vectors = self.xp.concatenate([each.vectors[: past.steps], vectors])
            encodings.append(Encoded(vectors, subsampled(n + 1), past=later, reused=past.steps if past else 0))
        kept = [array for _, later in grown for layer in later.layers for array in (layer.kv, layer.gated)]
        self.xp.evaluate(*(encoded.vectors for encoded in encodings), *kept)
        times = {"features_s": had_features - began, "encode_s": time.monotonic() - had_features}
        return [replace(encoded, **times) for encoded in encodings]

    def _past(self, before: Encoded | None, steps: int) -> EncoderPast | None:
        """What audio of so many steps goes on from; None if all of them are to be computed."""
        past = before.past if before else None
        return past if past and past.steps < steps < GROWTH * past.whole else None
