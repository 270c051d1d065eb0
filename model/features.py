"""Waveform to normalised log-mel spectrogram, as NeMo's FilterbankFeatures computes it."""

import mlx.core as mx

from model.arrays import Array
from model.config import PreprocessorConfig
from model.layers import Layer

LOG_GUARD = 2.0**-24
STD_GUARD = 1e-5


class LogMel(Layer):
    """The filterbank and window travel with the weights, so that a model's own are used."""

    def __init__(self, config: PreprocessorConfig):
        super().__init__()
        self._config = config
        self.window: Array = mx.zeros((config.win_length,))
        self.fb: Array = mx.zeros((config.features, config.n_fft // 2 + 1))

    def __call__(self, waveform: Array, lengths: Array) -> tuple[Array, Array]:
        """Normalised log-mel features.

        waveform: (B, N) float32 in [-1, 1] at the model's rate, zero-padded; lengths: (B,) samples.
        Returns (B, T, n_mels) with one frame per 10 ms and T = N // hop + 1, and the valid frames (B,).
        Frames past a row's valid ones are zero.
        """
        xp, config = self.xp, self._config
        waveform, lengths = xp.asarray(waveform), xp.asarray(lengths)
        valid = lengths // config.hop_length
        power = self._power_spectrum(self._preemphasised(waveform, lengths))
        log_mel = xp.log(power @ self.fb.T + LOG_GUARD)
        return self._normalised_per_feature(log_mel, valid), valid

    def _power_spectrum(self, waveform: Array) -> Array:
        """(B, N) → (B, N // hop + 1, n_fft // 2 + 1): centred frames over zero padding."""
        xp, config = self.xp, self._config
        half = config.n_fft // 2
        frames = xp.frames(xp.pad(waveform, [(0, 0), (half, half)]), config.n_fft, config.hop_length)
        left = (config.n_fft - config.win_length) // 2
        window = xp.pad(self.window, (left, config.n_fft - config.win_length - left))
        spectrum = xp.fft.rfft(frames * window, axis=-1)
        return xp.square(xp.real(spectrum)) + xp.square(xp.imag(spectrum))

    def _preemphasised(self, waveform: Array, lengths: Array) -> Array:
        """y[n] = x[n] - c·x[n-1], zero past each row's length."""
        xp = self.xp
        later = waveform[:, 1:] - self._config.preemph * waveform[:, :-1]
        filtered = xp.concatenate([waveform[:, :1], later], axis=1)
        return xp.where(xp.arange(waveform.shape[1]) < lengths[:, None], filtered, 0.0)

    def _normalised_per_feature(self, x: Array, valid: Array) -> Array:
        """Zero mean and unit deviation per row and band over the valid frames; zero elsewhere."""
        xp = self.xp
        inside = (xp.arange(x.shape[1]) < valid[:, None])[..., None]
        count = valid[:, None, None].astype(x.dtype)
        mean = xp.where(inside, x, 0.0).sum(axis=1, keepdims=True) / xp.maximum(count, 1)
        centred = xp.where(inside, x - mean, 0.0)
        # n - 1, as torch.std; a single frame has no deviation.
        deviation = xp.sqrt(xp.square(centred).sum(axis=1, keepdims=True) / xp.maximum(count - 1, 1))
        return centred / (deviation + STD_GUARD)
