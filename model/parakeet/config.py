"""Parakeet's configuration, and what follows from it: its heads, the languages it takes, the longest audio."""

from dataclasses import dataclass
from typing import ClassVar

from model.config import EncoderConfig, PreprocessorConfig, QuantizationConfig, TokenizerConfig
from model.decoding import DecodingOptions
from model.task import AUTO, TIMESTAMPS, CanaryOnlyError, Task, TaskError

# The longest audio, in seconds, that the published models were trained on: 30 to 40 s.
TRAINED_S = 40.0


@dataclass(frozen=True)
class PredictionConfig:
    """A transducer's prediction network: its width, and its LSTM layers."""

    hidden: int
    layers: int


@dataclass(frozen=True)
class JointConfig:
    """A transducer's joint network: its width."""

    hidden: int


@dataclass(frozen=True)
class ParakeetConfig:
    """A converted Parakeet.

    kind: the head that it writes with unless asked for another: "ctc", "rnnt" or "tdt"; auxiliary_ctc: whether a
    transducer has a CTC head as well. languages: ISO 639-1; empty if the archive does not say them. vocab_size: tokens
    without the blank, whose id it is. prediction, joint: None for "ctc". durations: how many encoder steps a token of a
    "tdt" may take. max_symbols: the most tokens that a transducer writes at one step.
    """

    name: str
    dtype: str
    kind: str
    languages: tuple[str, ...]
    vocab_size: int
    preprocessor: PreprocessorConfig
    encoder: EncoderConfig
    tokenizer: TokenizerConfig
    prediction: PredictionConfig | None = None
    joint: JointConfig | None = None
    durations: tuple[int, ...] = ()
    max_symbols: int = 10
    auxiliary_ctc: bool = False
    quantization: QuantizationConfig | None = None

    SUPPORTED: ClassVar = {"kind": ("ctc", "rnnt", "tdt"), "dtype": ("float32", "bfloat16", "float16")}

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that it can write with, its own first."""
        return (self.kind, "ctc") if self.auxiliary_ctc else (self.kind,)

    @property
    def step_s(self) -> float:
        """Seconds of audio in one encoder step."""
        return self.preprocessor.window_stride * self.encoder.subsampling_factor

    @property
    def longest_s(self) -> float:
        """The longest audio for one pass."""
        return TRAINED_S

    @property
    def context_tokens(self) -> int:
        """0: a Parakeet takes no context."""
        return 0

    @property
    def detects_language(self) -> bool:
        """False: a Parakeet is not told the language, and does not tell it."""
        return False

    @property
    def carries_state(self) -> bool:
        """True: no token depends on those after it."""
        return True

    @property
    def has_attention(self) -> bool:
        """False: each token has its frame."""
        return False

    @property
    def writes_times(self) -> bool:
        """False: times are those of frames."""
        return False

    @property
    def translates(self) -> bool:
        """False: a Parakeet writes what was said."""
        return False

    def check(self, task: Task) -> None:
        """Raise TaskError, naming the value and what is supported, if the model cannot do `task`.

        The model is never told its language, so a model that does not say its languages takes any.
        """
        if self.languages and task.language not in (*self.languages, AUTO):
            raise TaskError(
                f"language {task.language!r} is not supported by {self.name}; "
                f"must be one of {', '.join(self.languages)}",
                "language",
            )
        # What is spoken to a model of one language is in that language.
        spoken = self.languages[0] if task.language == AUTO and len(self.languages) == 1 else task.language
        if task.target_language not in (None, spoken):
            raise CanaryOnlyError(f"{self.name} does not translate; a Canary model does", "target_language")
        if task.timestamps not in TIMESTAMPS:
            raise TaskError(
                f"timestamps {task.timestamps!r} is not supported; must be one of {', '.join(TIMESTAMPS)}", "timestamps"
            )
        if task.context:
            raise TaskError(f"{self.name} does not support a context", "prompt")

    def head(self, options: DecodingOptions) -> str:
        """The head that is asked for, or its own. Raises TaskError if it has no such head."""
        if options.head not in (None, *self.heads):
            supported = self.kind if len(self.heads) == 1 else f"one of {', '.join(self.heads)}"
            raise TaskError(f"head {options.head!r} is not supported by {self.name}; must be {supported}", "head")
        return options.head or self.kind

    def check_options(self, options: DecodingOptions) -> None:
        """Raise TaskError, naming the value and what is supported, if the model cannot decode as `options` ask.

        A text of any length is written frame by frame, so `one_pass` is supported.
        """
        if self.head(options) == "ctc" and (options.beam_size or 1) > 1:
            raise TaskError(
                f"beam_size {options.beam_size} is not supported by the ctc head of {self.name}; must be 1", "beam_size"
            )
        if options.length_penalty:
            raise TaskError(
                f"length_penalty {options.length_penalty} is not supported by {self.name}; must be 0", "length_penalty"
            )
