"""Waveform to normalised log-mel spectrogram, as NeMo's FilterbankFeatures computes it."""

import mlx.core as mx
import mlx.nn as nn

from model.config import PreprocessorConfig

LOG_GUARD = 2.0**-24
STD_GUARD = 1e-5


class LogMel(nn.Module):
    """The filterbank and window travel with the weights, so that a model's own are used."""

    def __init__(self, config: PreprocessorConfig):
        super().__init__()
        self._config = config
        self.window = mx.zeros((config.win_length,))
        self.fb = mx.zeros((config.features, config.n_fft // 2 + 1))

    def __call__(self, waveform: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
        """Normalised log-mel features.

        waveform: (B, N) float32 in [-1, 1] at the model's rate, zero-padded; lengths: (B,) samples.
        Returns (B, T, n_mels) with one frame per 10 ms and T = N // hop + 1, and the valid frames (B,).
        Frames past a row's valid ones are zero.
        """
        config = self._config
        valid = lengths // config.hop_length
        power = self._power_spectrum(_preemphasised(waveform, lengths, config.preemph))
        log_mel = mx.log(power @ self.fb.T + LOG_GUARD)
        inside = (mx.arange(log_mel.shape[1]) < valid[:, None])[..., None]
        return _normalised_per_feature(log_mel, inside, valid), valid

    def _power_spectrum(self, waveform: mx.array) -> mx.array:
        """(B, N) → (B, N // hop + 1, n_fft // 2 + 1): centred frames over zero padding."""
        config = self._config
        half = config.n_fft // 2
        padded = mx.contiguous(mx.pad(waveform, [(0, 0), (half, half)]))
        B, N = padded.shape
        T = (N - config.n_fft) // config.hop_length + 1
        frames = mx.as_strided(padded, (B, T, config.n_fft), (N, config.hop_length, 1))
        left = (config.n_fft - config.win_length) // 2
        window = mx.pad(self.window, (left, config.n_fft - config.win_length - left))
        spectrum = mx.fft.rfft(frames * window, axis=-1)
        return mx.real(spectrum).square() + mx.imag(spectrum).square()


def _preemphasised(waveform: mx.array, lengths: mx.array, coefficient: float) -> mx.array:
    """y[n] = x[n] - c·x[n-1], zero past each row's length."""
    filtered = mx.concatenate([waveform[:, :1], waveform[:, 1:] - coefficient * waveform[:, :-1]], axis=1)
    return mx.where(mx.arange(waveform.shape[1]) < lengths[:, None], filtered, 0.0)


def _normalised_per_feature(x: mx.array, inside: mx.array, valid: mx.array) -> mx.array:
    """Zero mean and unit deviation per row and band over the valid frames; zero elsewhere."""
    count = valid[:, None, None].astype(x.dtype)
    mean = mx.where(inside, x, 0.0).sum(axis=1, keepdims=True) / mx.maximum(count, 1)
    centred = mx.where(inside, x - mean, 0.0)
    # n - 1, as torch.std; a single frame has no deviation.
    deviation = mx.sqrt(centred.square().sum(axis=1, keepdims=True) / mx.maximum(count - 1, 1))
    return centred / (deviation + STD_GUARD)
