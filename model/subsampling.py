"""The encoder's first stage: log-mel frames to one step per 80 ms. NeMo's `dw_striding` by 8."""

import mlx.nn as nn

from model.arrays import Array
from model.config import EncoderConfig
from model.layers import Layer, Linear

FACTOR = 8
# Steps that are computed at a time: on a CPU so that the maps stay in its cache, on a GPU so that those of a long
# recording fit into memory.
STRETCH, GPU_STRETCH = 16, 1024


def subsampled(length, convolutions: int = 3):
    """How many of `length` frames (int or array) are left after convolutions of stride 2."""
    for _ in range(convolutions):
        length = (length - 1) // 2 + 1
    return length


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1, groups=channels)


class Subsampling(Layer):
    """Three convolutions of stride 2, then a projection to the model's width."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        C = config.subsampling_conv_channels
        self.conv_in = nn.Conv2d(1, C, kernel_size=3, stride=2, padding=1)
        self.depthwise1 = _depthwise(C)
        self.pointwise1 = Linear(C, C)
        self.depthwise2 = _depthwise(C)
        self.pointwise2 = Linear(C, C)
        self.out = Linear(C * subsampled(config.feat_in), config.d_model)

    def __call__(self, mel: Array, lengths: Array | None, first: int = 0) -> Array:
        """mel: (B, T, n_mels); lengths: (B,) valid frames, None where all are → (B, T' - first, d_model).

        Frames past a length count as zeros in every convolution. first: the first step to compute.
        """
        xp, T = self.xp, subsampled(mel.shape[1])
        stretch = GPU_STRETCH if xp.CONCURRENT else STRETCH
        parts = [self._steps(mel, lengths, start, min(start + stretch, T)) for start in range(first, T, stretch)]
        x = xp.concatenate(parts, axis=1)
        return self.out(x.reshape(*x.shape[:2], -1))

    def _steps(self, mel: Array, lengths: Array | None, start: int, stop: int) -> Array:
        """The maps of steps start … stop: (B, stop - start, F', C)."""
        # From one step earlier on, which hears padding instead of what came before.
        begin = max(start - 1, 0)
        heard = mel[:, FACTOR * begin : FACTOR * stop]
        maps = self.convolved(heard, None if lengths is None else lengths - FACTOR * begin)
        return maps[:, start - begin :]

    def convolved(self, mel: Array, lengths: Array | None) -> Array:
        """mel: (B, T, n_mels); lengths: (B,) valid frames, or None → (B, T', F', C)."""
        xp = self.xp
        x = self._inside(mel[..., None], lengths, 0)
        x = self._inside(xp.relu(self.conv_in(x)), lengths, 1)
        x = self._inside(xp.relu(self.pointwise1(self.depthwise1(x))), lengths, 2)
        return self._inside(xp.relu(self.pointwise2(self.depthwise2(x))), lengths, 3)

    def _inside(self, x: Array, lengths: Array | None, convolutions: int) -> Array:
        """x (B, T, F, C), a map after so many convolutions, with zeros past the lengths."""
        if lengths is None:
            return x
        inside = self.xp.arange(x.shape[1]) < subsampled(lengths, convolutions)[:, None]
        return self.xp.where(inside[..., None, None], x, 0)
