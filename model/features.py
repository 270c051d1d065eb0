"""Waveform to normalised log-mel spectrogram, as NeMo's FilterbankFeatures computes it."""

import mlx.core as mx

from model.arrays import Array
from model.config import PreprocessorConfig
from model.layers import Layer

LOG_GUARD = 2.0**-24
STD_GUARD = 1e-5
# Frames whose spectrum is held at once (60 s), so that the spectrum of an hour is not.
FRAMES_AT_ONCE = 6000


class LogMel(Layer):
    """Log-mel features with the model's own filterbank and window, which are stored with its weights."""

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
        log_mel = self._log_mel(self._preemphasised(waveform, lengths))
        return self._normalised_per_feature(log_mel, valid), valid

    def _log_mel(self, waveform: Array) -> Array:
        """(B, N) → (B, N // hop + 1, n_mels): centred frames over zero padding."""
        xp, n_fft, hop = self.xp, self._config.n_fft, self._config.hop_length
        count = waveform.shape[1] // hop + 1
        padded = xp.pad(waveform, [(0, 0), (n_fft // 2, n_fft // 2)])
        parts = []
        for start in range(0, count, FRAMES_AT_ONCE):
            stop = min(start + FRAMES_AT_ONCE, count)
            power = self._power_spectrum(padded[:, start * hop : (stop - 1) * hop + n_fft])
            parts.append(xp.log(power @ self.fb.T + LOG_GUARD))
        return xp.concatenate(parts, axis=1)

    def _power_spectrum(self, waveform: Array) -> Array:
        """(B, N) → (B, (N - n_fft) // hop + 1, n_fft // 2 + 1)"""
        xp, config = self.xp, self._config
        frames = xp.frames(waveform, config.n_fft, config.hop_length)
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
