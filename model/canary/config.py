"""Canary's configuration, and what follows from it: what the model supports, and how much audio it takes at once."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from model.config import EncoderConfig, PreprocessorConfig, QuantizationConfig, TokenizerConfig
from model.decoding import DecodingOptions
from model.task import AUTO, TIMESTAMPS, LanguagePairError, Task, TaskError

# The longest audio, in seconds, that the published models were trained on.
TRAINED_S = 40.0
# The decoder must have room for the words of a fast speaker, and for two more tokens a word if it writes times.
WORDS_PER_S, TOKENS_PER_WORD, TIME_TOKENS_PER_WORD = 5.0, 3, 2
# The share of the decoder's sequence that a context may take.
CONTEXT_SHARE = 0.25


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
    """The search, unless a request asks for another."""

    beam_size: int = 1
    length_penalty: float = 0.0
    max_generation_delta: int = 50


@dataclass(frozen=True)
class CanaryConfig:
    """A converted Canary. `languages` are those that both the tokenizer and the prompt have, ISO 639-1."""

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

    @property
    def step_s(self) -> float:
        """Seconds of audio in one encoder step."""
        return self.preprocessor.window_stride * self.encoder.subsampling_factor

    @property
    def writes_times(self) -> bool:
        """Whether the model itself writes the times of words: the flash models do; canary-1b-v2 would stop at once."""
        return self.prompt_format == "canary2" and self.tokenizer.type == "agg"

    @property
    def longest_s(self) -> float:
        """The longest audio for one pass: 40 s, or as the decoder has room: 34 s for canary-1b with its 512 tokens."""
        tokens = TOKENS_PER_WORD + TIME_TOKENS_PER_WORD * self.writes_times
        return min(TRAINED_S, self.decoder.max_sequence_length / (WORDS_PER_S * tokens))

    @property
    def context_tokens(self) -> int:
        """The most tokens that a context may have; 0 for canary-1b, whose prompt has no place for one."""
        return 0 if self.prompt_format == "canary" else int(self.decoder.max_sequence_length * CONTEXT_SHARE)

    @property
    def detects_language(self) -> bool:
        """True: the language is a token that the decoder can write."""
        return True

    @property
    def carries_state(self) -> bool:
        """False: a text depends on the whole audio."""
        return False

    @property
    def has_attention(self) -> bool:
        """True: the decoder attends to the audio."""
        return True

    @property
    def translates(self) -> bool:
        """True: the prompt names the language to write."""
        return True

    def check(self, task: Task) -> None:
        """Raise TaskError, naming the value and what is supported, if the model cannot do `task`."""
        languages = ", ".join(self.languages)
        if task.language == AUTO:
            # Whatever is spoken can be transcribed, and a target may be the language spoken.
            task = replace(task, language=task.target_language or self.languages[0])
        elif task.language not in self.languages:
            raise TaskError(
                f"language {task.language!r} is not supported by {self.name}; must be one of {languages}", "language"
            )
        if task.target not in self.languages:
            raise TaskError(
                f"target_language {task.target!r} is not supported by {self.name}; must be one of {languages}",
                "target_language",
            )
        if task.is_translation and "en" not in (task.language, task.target):
            raise LanguagePairError(
                f"{self.name} does not translate {task.language} to {task.target}; one of the two must be en",
                "target_language",
            )
        if task.timestamps not in TIMESTAMPS:
            raise TaskError(
                f"timestamps {task.timestamps!r} is not supported; must be one of {', '.join(TIMESTAMPS)}", "timestamps"
            )
        if task.context and not self.context_tokens:
            raise TaskError(f"{self.name} does not support a context", "prompt")

    def check_options(self, options: DecodingOptions) -> None:
        """Raise TaskError for options that only Parakeets have."""
        if options.head:
            raise TaskError(f"head {options.head!r} is not supported by {self.name}, which has only one", "head")
        if options.one_pass:
            raise TaskError(f"{self.name} takes long audio in pieces only; a Parakeet model takes it whole", "one_pass")
