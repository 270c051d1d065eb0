"""The whole model: `ParakeetModel.load` a converted folder, then waveforms to transcripts."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from model import weights
from model.arrays import Array, default_dtype
from model.config import SAMPLE_RATE, WEIGHTS_FILE, read_config
from model.decoding import DecodingOptions, Detection, Encoded, Generated
from model.footprint import Footprint
from model.layers import Linear
from model.listening import Listener
from model.memory import Need
from model.parakeet.batch import RunningBatch
from model.parakeet.config import ParakeetConfig
from model.parakeet.ctc import CTCSearch
from model.parakeet.decoding import CTC, State, TimedTokens, Utterance
from model.parakeet.joint import Joint
from model.parakeet.prediction import PredictionNetwork
from model.parakeet.times import token_spans, word_spans
from model.parakeet.transducer import Transducer
from model.parakeet.words import ParakeetTokenizer, Spelling
from model.task import AUTO, Task, TaskError
from model.timestamps import segment_of, sentences
from model.tokenizer import Tokenizer, load_tokenizer
from model.transcript import Transcript

# The steps to the left and to the right, 20 s each, that NVIDIA's model cards recommend for long audio.
LONG_CONTEXT = (256, 256)


class ParakeetModel(Listener):
    """Parakeet. A `model.family.Model`: it belongs to the thread that loaded it, as its MLX arrays do."""

    def __init__(self, config: ParakeetConfig, tokenizer: Tokenizer):
        super().__init__(config.preprocessor, config.encoder)
        self.config = config
        self.tokenizer = tokenizer
        tokens, width = config.vocab_size + 1, config.encoder.d_model
        if config.prediction and config.joint:
            self.prediction = PredictionNetwork(config.prediction, config.vocab_size)
            self.joint = Joint(config.joint, width, config.prediction.hidden, tokens + len(config.durations))
        if "ctc" in config.heads:
            self.ctc = Linear(width, tokens)
        self._spelling = Spelling(tokenizer)

    @classmethod
    def load(cls, folder: Path, dtype: str | None = None) -> Self:
        """The model in a converted folder, in `dtype` or what suits the device. A transducer's own is float32.

        Raises ConfigError, TokenizerError or WeightsError.
        """
        folder = Path(folder)
        config = read_config(folder, ParakeetConfig)
        dtype = dtype or default_dtype()
        footprint(folder, config).reserve(dtype)
        parakeet = cls(config, load_tokenizer(folder, config.tokenizer, single=ParakeetTokenizer))
        weights.load(parakeet, folder / WEIGHTS_FILE, dtype, config.quantization)
        return parakeet

    @classmethod
    def memory_need(cls, folder: Path, dtype: str) -> Need:
        """What the model in a converted folder takes in `dtype`. Raises ConfigError or WeightsError."""
        return footprint(Path(folder), read_config(folder, ParakeetConfig)).need(dtype)

    def encodings(
        self,
        waveforms: list[np.ndarray],
        between_layers: Callable[[], None] | None = None,
        local: tuple[int, int] | None = None,
    ) -> list[Encoded]:
        """The encoding of each waveform. between_layers: see `family.Model`; local: see `FastConformer`."""
        waveforms = [self._at_least_a_step(w) for w in waveforms]
        groups = [waveforms] if self.encodes_together else [[w] for w in waveforms]
        return [each for group in groups for each in self.encoded_together(group, local, between_layers)]

    def long_encoding(self, waveform: np.ndarray, between_layers: Callable[[], None] | None = None) -> Encoded:
        """The encoding of a long waveform. Attention sees LONG_CONTEXT, or what the model was trained with."""
        return self.encodings([waveform], between_layers, self.config.encoder.local_context or LONG_CONTEXT)[0]

    def _at_least_a_step(self, waveform: np.ndarray) -> np.ndarray:
        """Shorter audio zero-padded to one encoder step. NeMo refuses audio that is too short to normalise."""
        missing = int(self.config.step_s * self.config.preprocessor.sample_rate) - len(waveform)
        return np.pad(waveform, (0, missing)) if missing > 0 else waveform

    def detect_language(self, encoded: Encoded) -> Detection:
        """Raises TaskError: nothing in the model tells the language."""
        raise TaskError(f"{self.config.name} does not detect the language", "language")

    def growing_encodings(self, waveforms: list[np.ndarray], before: list[Encoded | None]) -> list[Encoded]:
        """Not for a Parakeet: it decodes growing audio in pieces."""
        raise NotImplementedError(f"{self.config.name} decodes growing audio in pieces")

    def utterance(
        self,
        key: int,
        encoded: Encoded,
        task: Task,
        options: DecodingOptions,
        prefix: tuple[int, ...] = (),
        attention: bool = False,
        before: None = None,
        draft: tuple[int, ...] = (),
    ) -> Utterance:
        """One text, for `RunningBatch.join`. Raises TaskError, also for a prefix: a text is heard from its start."""
        self.config.check(task)
        self.config.check_options(options)
        if prefix:
            raise TaskError(f"{self.config.name} does not continue a given text", "prefix")
        head, limit = self.config.head(options), options.max_new_tokens
        return Utterance(key, encoded.vectors, head, limit, options.beam_size or 1)

    def piece(self, key: int, vectors: Array, state: State | None, head: str | None = None) -> Utterance:
        """A piece (T, D) of a longer recording, for `RunningBatch.join`: its text goes on from `state`, None for none.

        The result has the state after it. Pieces with their states have the tokens of the whole recording at once.
        head: as in `DecodingOptions`. Raises TaskError.
        """
        head = self.config.head(DecodingOptions(head=head))
        if state is None:
            state = State() if head == CTC else self._transducer.started()
        return Utterance(key, vectors, head, state=state)

    @property
    def _transducer(self) -> Transducer:
        config = self.config
        return Transducer(self.prediction, self.joint, config.vocab_size + 1, config.durations, config.max_symbols)

    def running_batch(self) -> RunningBatch:
        """An empty batch to decode in."""
        ctc = CTCSearch(self.ctc, self.config.vocab_size + 1, self.xp) if "ctc" in self else None
        return RunningBatch(self._transducer if "joint" in self else None, ctc)

    def generate(self, utterances: list[Utterance]) -> list[TimedTokens]:
        """The tokens of each, all decoded side by side."""
        batch = self.running_batch()
        finished = batch.join(utterances)
        while batch.rows:
            finished += batch.step()
        order = [utterance.key for utterance in utterances]
        return sorted(finished, key=lambda written: order.index(written.key))

    def transcribe(
        self, waveforms: list[np.ndarray], task: Task = Task(AUTO), options: DecodingOptions = DecodingOptions()
    ) -> list[Transcript]:
        """Transcripts of 16 kHz mono float32 waveforms, decoded together. Raises TaskError."""
        encodings = self.encodings(waveforms)
        written = self.generate([self.utterance(i, each, task, options) for i, each in enumerate(encodings)])
        tasks = [task] * len(waveforms)
        return [self.transcript(*each) for each in zip(written, waveforms, tasks, encodings, strict=True)]

    def transcript(self, generated: Generated, waveform: np.ndarray, task: Task, encoded: Encoded) -> Transcript:
        """Tokens as text, with the model's own times if `task` asks for any. A segment is a sentence."""
        assert isinstance(generated, TimedTokens)
        config, duration = self.config, len(waveform) / SAMPLE_RATE
        words = self._spelling.words(generated.tokens)
        if not words:
            segments = ()
        elif task.timestamps == "none":
            segments = segment_of(self._spelling.text(generated.tokens), generated, duration)
        else:
            spans = word_spans(words, token_spans(generated, self._spelling))
            times = [(min(start * config.step_s, duration), min(end * config.step_s, duration)) for start, end in spans]
            segments = sentences(words, times, generated, self.tokenizer)
        # An archive for one language says which.
        language = config.languages[0] if task.language == AUTO and len(config.languages) == 1 else task.language
        source = None if task.timestamps == "none" else "model"
        text = " ".join(segment.text for segment in segments)
        return Transcript(text, language, language, duration, segments, source)

    def attention(self, encoded: Encoded, task: Task, tokens: list[int]) -> np.ndarray:
        """Not for a Parakeet: it has no cross-attention, and each of its tokens has its frame."""
        raise NotImplementedError(f"{self.config.name} has no cross-attention")


def footprint(folder: Path, config: ParakeetConfig) -> Footprint:
    """What decides how much memory the model takes."""
    steps = int(config.longest_s / config.step_s)
    # A transducer keeps each encoder step as its joint network takes it.
    cached = steps * config.joint.hidden if config.joint else 0
    return Footprint(config.name, (folder / WEIGHTS_FILE,), config.quantization, config.encoder, steps, cached)
