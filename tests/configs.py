"""Configurations for tests that need a model's facts and no model."""

from typing import Any

from model.canary.config import CanaryConfig, DecoderConfig, DecodingConfig
from model.config import EncoderConfig, PreprocessorConfig, TokenizerConfig


def canary_config(name: str = "mock", languages: tuple[str, ...] = ("en", "de"), longest: int = 1024) -> CanaryConfig:
    """A small flash model; longest: tokens in the decoder's sequence."""
    return CanaryConfig(
        name=name,
        dtype="float32",
        prompt_format="canary2",
        prompt_defaults=(),
        languages=languages,
        vocab_size=64,
        preprocessor=PreprocessorConfig(features=80),
        encoder=encoder_config(),
        decoder=DecoderConfig(48, 96, 2, 4, longest),
        decoding=DecodingConfig(max_generation_delta=20),
        tokenizer=TokenizerConfig("agg", {}),
    )


def encoder_config(**changes: Any) -> EncoderConfig:
    """A small encoder without `xscaling`, as in every Canary."""
    values = {"feat_in": 80, "n_layers": 2, "d_model": 32, "n_heads": 4, "subsampling_conv_channels": 8}
    return EncoderConfig(**{**values, "xscaling": False, **changes})
