"""How much memory a converted model takes, for every family."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import memory
from model.arrays import as_on_gpu, on_cpu
from model.config import EncoderConfig, QuantizationConfig

# Arrays as large as the first subsampling map that MLX holds at the same time; 3.0 to 3.6 were measured. On a CPU the
# map is computed in stretches, and what there is besides is smaller than one.
MAPS_AT_ONCE = 4


@dataclass(frozen=True)
class Footprint:
    """What decides how much memory a model takes.

    files: its weights, of which those that exist count; steps: encoder steps of the longest audio; cached: values that
    are kept while one text is decoded.
    """

    name: str
    files: tuple[Path, ...]
    quantization: QuantizationConfig | None
    encoder: EncoderConfig
    steps: int
    cached: int

    def need(self, dtype: str) -> memory.Need:
        """What the model takes in `dtype`. Raises WeightsError if a file cannot be read."""
        return self._need(dtype, self._sizes(memory.weights_size, dtype, self.quantization))

    def reserve(self, dtype: str) -> None:
        """Raise WeightsError if the model does not fit into memory in `dtype`; set MLX's limits if it does."""
        smaller = {}
        if dtype == "float32" and not on_cpu():
            smaller["--dtype bfloat16"] = self.need("bfloat16")
        if self.quantization is None:
            for bits in (8, 4):
                smaller[f"--quantize {bits}"] = self._need(dtype, self._sizes(memory.quantized_size, dtype, bits))
        memory.reserve(self.name, self.need(dtype), smaller)

    def _need(self, dtype: str, weights: int) -> memory.Need:
        item = memory.ITEM_SIZES[dtype]
        # The first map has a frame for each two of the audio's, of half as many bands, in so many channels.
        first_map = 4 * self.steps * (self.encoder.feat_in // 2) * self.encoder.subsampling_conv_channels * item
        return memory.Need(weights, self.cached * item, first_map * (MAPS_AT_ONCE if as_on_gpu() else 1))

    def _sizes(self, size: Callable[..., int], dtype: str, *options: Any) -> int:
        return sum(size(file, dtype, *options) for file in self.files if file == self.files[0] or file.exists())
