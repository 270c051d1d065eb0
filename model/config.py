"""The configuration of a converted model, read from its `config.json`: the sections that families share.

Names are NeMo's. Unsupported values are refused here, by name, before any weight is read.
"""

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ALIGNER_DIR = "aligner"
FORMAT_VERSION = 1
# Tensors that stay in float32 in any precision: in 16 bits, log-mel would lose quiet sounds, and a transducer's choice
# between a token and the blank would change.
FLOAT32_PARTS = ("preprocessor.", "prediction.", "joint.")
SAMPLE_RATE = 16_000
"""The sample rate of all audio that models take, in Hz."""


class ConfigError(ValueError):
    """A configuration that is incomplete or not supported."""


class WeightsError(ValueError):
    """Weights that do not fit the configuration beside them or into memory, or cannot be read."""


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
    """NeMo's ConformerEncoder, with NeMo's defaults.

    att_context_size: how many steps attention sees to the left and right; (-1, -1) for all.
    """

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
    xscaling: bool = True
    untie_biases: bool = True
    pos_emb_max_len: int = 5000
    conv_kernel_size: int = 9
    conv_norm_type: str = "batch_norm"
    use_bias: bool = True

    SUPPORTED: ClassVar = {
        "subsampling": ("dw_striding",),
        "subsampling_factor": (8,),
        "causal_downsampling": (False,),
        "self_attention_model": ("rel_pos", "rel_pos_local_attn"),
        "untie_biases": (True,),
        "conv_norm_type": ("batch_norm",),
    }

    def __post_init__(self) -> None:
        size = self.att_context_size
        is_pair = isinstance(size, tuple) and len(size) == 2 and all(isinstance(steps, int) for steps in size)
        is_full = size == (-1, -1) and self.self_attention_model == "rel_pos"
        if not is_full and not (is_pair and min(size) >= 0):
            raise ConfigError(
                f"encoder.att_context_size: {size!r} is not supported; must be two numbers of steps"
                + (", or -1, -1 for all" if self.self_attention_model == "rel_pos" else "")
            )
        if self.conv_kernel_size % 2 == 0:
            raise ConfigError(f"encoder.conv_kernel_size: {self.conv_kernel_size!r} is not supported; must be odd")

    @property
    def local_context(self) -> tuple[int, int] | None:
        """How many steps attention sees to the left and to the right; None for all."""
        left, right = self.att_context_size
        return None if left < 0 else (left, right)


@dataclass(frozen=True)
class TokenizerConfig:
    """SentencePiece files by language, in the order of their id offsets; a single one named "" if `type` is bpe."""

    type: str
    models: dict[str, str]

    SUPPORTED: ClassVar = {"type": ("agg", "bpe")}


@dataclass(frozen=True)
class QuantizationConfig:
    """How large linear layers are packed: integers of `bits`, with a scale and an offset for each group."""

    bits: int
    group_size: int

    SUPPORTED: ClassVar = {"bits": (4, 8), "group_size": (32, 64, 128)}


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


def section_from(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """An instance of the dataclass `cls`. Keys that it does not have are ignored: NeMo's yaml has many.

    where: the path of `values` in the file, for messages.
    Raises ConfigError naming the key that is missing or the value that is not supported.
    """
    prefix = f"{where}." if where else ""
    types, supported_values = get_type_hints(cls), getattr(cls, "SUPPORTED", {})
    chosen: dict[str, Any] = {}
    for field in fields(cls):
        if field.name not in values:
            continue
        value, section = values[field.name], _section_class(types[field.name])
        if section and not (value is None and field.default is None):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{field.name}: {value!r} is not a section")
            value = section_from(section, value, prefix + field.name)
        elif isinstance(value, list):
            value = tuple(value)
        if not section and field.name not in supported_values and not _is_of_type(value, types[field.name]):
            expected = _in_words(types[field.name])
            raise ConfigError(f"{prefix}{field.name}: {value!r} is not supported; must be {expected}")
        chosen[field.name] = value
    for key, allowed in supported_values.items():
        if key in chosen and chosen[key] not in allowed:
            supported = ", ".join(map(repr, allowed))
            raise ConfigError(f"{prefix}{key}: {chosen[key]!r} is not supported; must be one of {supported}")
    try:
        return cls(**chosen)
    except TypeError as error:
        raise ConfigError(f"{where or 'configuration'}: {str(error).partition(') ')[2] or error}") from None


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", tuple: "a list"}


def _is_of_type(value: Any, annotation: Any) -> bool:
    """Whether a value from JSON or YAML fits an annotation. A list's items and a section's values are not looked at."""
    kinds = tuple(get_origin(each) or each for each in _alternatives(annotation))
    if isinstance(value, bool):
        return bool in kinds
    # Anything else, such as a Literal, is for the class itself to check.
    if not all(isinstance(kind, type) for kind in kinds):
        return True
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _in_words(annotation: Any) -> str:
    return " or ".join(_WORDS.get(get_origin(each) or each, "null") for each in _alternatives(annotation))


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


def _section_class(annotation: Any) -> type | None:
    """The dataclass in an annotation such as `X` or `X | None`; None if there is none."""
    return next(
        (each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and is_dataclass(each)), None
    )


def read_values(folder: Path) -> dict[str, Any]:
    """The contents of a converted folder's `config.json`. Raises ConfigError if it is missing or cannot be used."""
    path = Path(folder) / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a converted model: it has no {CONFIG_FILE}") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        version = values.get("format_version") if isinstance(values, dict) else None
        raise ConfigError(f"{path}: format_version {version!r} is not {FORMAT_VERSION}; convert the model again")
    return values


def read_config(folder: Path, cls: type) -> Any:
    """The configuration of a converted folder as an instance of `cls`. Raises ConfigError."""
    return section_from(cls, read_values(folder))
