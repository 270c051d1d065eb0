"""The configuration of a converted model, read from its `config.json`.

Names are NeMo's. What this implementation cannot do is refused here, by name, before any weight is read.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ALIGNER_DIR = "aligner"
FORMAT_VERSION = 1
SAMPLE_RATE = 16_000
"""Of all sound that the models hear, in Hz."""


class ConfigError(ValueError):
    """A configuration that is incomplete, or asks for something this implementation does not have."""


@dataclass(frozen=True)
class PreprocessorConfig:
    """NeMo's AudioToMelSpectrogramPreprocessor. Windows are seconds."""

    sample_rate: int = SAMPLE_RATE
    window_size: float = 0.025
    window_stride: float = 0.01
    n_fft: int = 512
    features: int = 128
    preemph: float = 0.97
    normalize: str = "per_feature"

    SUPPORTED: ClassVar = {"normalize": ("per_feature",)}

    @property
    def win_length(self) -> int:
        return int(self.window_size * self.sample_rate)

    @property
    def hop_length(self) -> int:
        return int(self.window_stride * self.sample_rate)


@dataclass(frozen=True)
class EncoderConfig:
    """NeMo's ConformerEncoder."""

    feat_in: int
    n_layers: int
    d_model: int
    n_heads: int
    subsampling_conv_channels: int
    subsampling: str = "dw_striding"
    subsampling_factor: int = 8
    causal_downsampling: bool = False
    ff_expansion_factor: int = 4
    self_attention_model: str = "rel_pos"
    att_context_size: tuple[int, ...] = (-1, -1)
    xscaling: bool = False
    untie_biases: bool = True
    pos_emb_max_len: int = 5000
    conv_kernel_size: int = 9
    conv_norm_type: str = "batch_norm"
    use_bias: bool = True

    SUPPORTED: ClassVar = {
        "subsampling": ("dw_striding",),
        "subsampling_factor": (8,),
        "causal_downsampling": (False,),
        "self_attention_model": ("rel_pos",),
        "att_context_size": ((-1, -1),),
        "untie_biases": (True,),
        "conv_norm_type": ("batch_norm",),
    }


@dataclass(frozen=True)
class DecoderConfig:
    """NeMo's `transf_decoder.config_dict`."""

    hidden_size: int
    inner_size: int
    num_layers: int
    num_attention_heads: int
    max_sequence_length: int
    hidden_act: str = "relu"
    pre_ln: bool = True
    pre_ln_final_layer_norm: bool = True
    learn_positional_encodings: bool = False
    num_token_types: int = 0

    SUPPORTED: ClassVar = {
        "hidden_act": ("relu",),
        "pre_ln": (True,),
        "pre_ln_final_layer_norm": (True,),
        "learn_positional_encodings": (False,),
        "num_token_types": (0,),
    }


@dataclass(frozen=True)
class DecodingConfig:
    """How far and how wide to search unless a request says otherwise."""

    beam_size: int = 1
    length_penalty: float = 0.0
    max_generation_delta: int = 50


@dataclass(frozen=True)
class TokenizerConfig:
    """SentencePiece files by language, in the order that fixes the id offsets; one named "" when `type` is bpe."""

    type: str
    models: dict[str, str]

    SUPPORTED: ClassVar = {"type": ("agg", "bpe")}


@dataclass(frozen=True)
class QuantizationConfig:
    """How the large linear layers are packed: whole numbers of `bits`, with a scale and an offset for every group."""

    bits: int
    group_size: int

    SUPPORTED: ClassVar = {"bits": (4, 8), "group_size": (32, 64, 128)}


@dataclass(frozen=True)
class CanaryConfig:
    """A converted Canary. `languages` are those the tokenizer and the prompt have, ISO 639-1."""

    name: str
    dtype: str
    prompt_format: str
    prompt_defaults: tuple[dict[str, Any], ...]
    languages: tuple[str, ...]
    vocab_size: int
    preprocessor: PreprocessorConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    decoding: DecodingConfig
    tokenizer: TokenizerConfig
    quantization: QuantizationConfig | None = None

    SUPPORTED: ClassVar = {"prompt_format": ("canary", "canary2"), "dtype": ("float32", "bfloat16", "float16")}


@dataclass(frozen=True)
class AlignerConfig:
    """canary-1b-v2's timestamps model: an encoder with a CTC head. The blank is `vocab_size`."""

    dtype: str
    vocab_size: int
    preprocessor: PreprocessorConfig
    encoder: EncoderConfig
    tokenizer: TokenizerConfig
    quantization: QuantizationConfig | None = None

    SUPPORTED: ClassVar = {"dtype": ("float32", "bfloat16", "float16")}


_SECTIONS = {
    "preprocessor": PreprocessorConfig,
    "encoder": EncoderConfig,
    "decoder": DecoderConfig,
    "decoding": DecodingConfig,
    "tokenizer": TokenizerConfig,
    "quantization": QuantizationConfig,
}


def section_from(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """An instance of one of the dataclasses above; keys it does not have are passed over, as NeMo's yaml has many.

    Raises ConfigError naming the key that is missing or the value that is not supported.
    """
    prefix = f"{where}." if where else ""
    chosen: dict[str, Any] = {}
    for field in fields(cls):
        if field.name not in values:
            continue
        value = values[field.name]
        if field.name in _SECTIONS and not (value is None and field.default is None):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{field.name}: {value!r} is not a section")
            value = section_from(_SECTIONS[field.name], value, prefix + field.name)
        elif isinstance(value, list):
            value = tuple(value)
        chosen[field.name] = value
    for key, allowed in getattr(cls, "SUPPORTED", {}).items():
        if key in chosen and chosen[key] not in allowed:
            raise ConfigError(
                f"{prefix}{key}: {chosen[key]!r} is not supported; possible: {', '.join(map(repr, allowed))}"
            )
    try:
        return cls(**chosen)
    except TypeError as error:
        raise ConfigError(f"{where or 'configuration'}: {str(error).partition(') ')[2] or error}") from None


def read_config(folder: Path, cls: type = CanaryConfig) -> Any:
    """The configuration in a converted folder. Raises ConfigError if it is not one."""
    path = Path(folder) / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no converted model: {CONFIG_FILE} is missing") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if values.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: format_version {values.get('format_version')!r} is not {FORMAT_VERSION}; convert the model again"
        )
    return section_from(cls, values)
