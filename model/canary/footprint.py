"""How much memory a converted Canary takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model import memory
from model.arrays import as_on_gpu, on_cpu
from model.canary.config import CanaryConfig
from model.config import ALIGNER_DIR, WEIGHTS_FILE

# Arrays as large as the first subsampling map that MLX holds at the same time; 3.0 to 3.6 were measured. On a CPU the
# map is computed in stretches, and what there is besides is smaller than one.
MAPS_AT_ONCE = 4


def memory_need(folder: Path, config: CanaryConfig, dtype: str) -> memory.Need:
    """What the model takes in `dtype`, its aligner included. Raises WeightsError if a file cannot be read."""
    return _need(config, dtype, _sizes(folder, memory.weights_size, dtype, config.quantization))


def reserve_memory(folder: Path, config: CanaryConfig, dtype: str) -> None:
    """Raise WeightsError if the model, its aligner included, does not fit into memory; set MLX's limits if it does."""
    smaller = {}
    if dtype == "float32" and not on_cpu():
        smaller["--dtype bfloat16"] = memory_need(folder, config, "bfloat16")
    if config.quantization is None:
        for bits in (8, 4):
            smaller[f"--quantize {bits}"] = _need(config, dtype, _sizes(folder, memory.quantized_size, dtype, bits))
    memory.reserve(config.name, memory_need(folder, config, dtype), smaller)


def _need(config: CanaryConfig, dtype: str, weights: int) -> memory.Need:
    encoder, decoder, item = config.encoder, config.decoder, memory.ITEM_SIZES[dtype]
    steps = int(config.longest_s / config.step_s)
    positions = decoder.max_sequence_length + steps
    cache = 2 * decoder.num_layers * positions * decoder.hidden_size * item
    # The first map has a frame for each two of the audio's, of half as many bands, in so many channels.
    first_map = 4 * steps * (encoder.feat_in // 2) * encoder.subsampling_conv_channels * item
    return memory.Need(weights, cache, first_map * (MAPS_AT_ONCE if as_on_gpu() else 1))


def _sizes(folder: Path, size: Callable[..., int], dtype: str, *options: Any) -> int:
    files = (folder / WEIGHTS_FILE, folder / ALIGNER_DIR / WEIGHTS_FILE)
    return sum(size(file, dtype, *options) for file in files if file == files[0] or file.exists())
