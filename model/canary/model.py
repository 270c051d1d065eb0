"""The whole model: `CanaryModel.load` a converted folder, then waveforms to transcripts."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from model import weights
from model.aligner import Aligner
from model.alignment import attention_times
from model.arrays import Array, default_dtype
from model.canary.config import CanaryConfig
from model.canary.decoder import CrossMemory, Decoder, Head, TextMemory, Watched
from model.canary.generate import RunningBatch, new_token_limit
from model.canary.prompt import END, NO_SPEECH, REQUIRED_TOKENS, language_query_tokens, prompt_tokens
from model.canary.rows import Utterance
from model.config import ALIGNER_DIR, CONFIG_FILE, SAMPLE_RATE, WEIGHTS_FILE, read_config
from model.decoding import DecodingOptions, Detection, Encoded, Generated, detection_from
from model.footprint import Footprint
from model.layers import Linear
from model.listening import Listener
from model.memory import Need
from model.task import Task
from model.timestamps import sentences, timed_segments, whole_segment, written_words
from model.tokenizer import PAD, Tokenizer, load_tokenizer
from model.transcript import Transcript

MIN_DURATION_S = 1.0


class CanaryModel(Listener):
    """Canary. A `model.family.Model`: it belongs to the thread that loaded it, as its MLX arrays do."""

    def __init__(self, config: CanaryConfig, tokenizer: Tokenizer):
        super().__init__(config.preprocessor, config.encoder)
        self.config = config
        self.tokenizer = tokenizer
        if config.encoder.d_model != config.decoder.hidden_size:
            self.encoder_decoder_proj = Linear(config.encoder.d_model, config.decoder.hidden_size)
        self.decoder = Decoder(config.decoder, config.vocab_size)
        self.head = Head(config.vocab_size)
        # canary-1b-v2's aligner is large (2.4 GB in float32), so it is loaded when times are first asked for.
        self._aligner: Callable[[], Aligner] | None = None

    @classmethod
    def load(cls, folder: Path, dtype: str | None = None) -> Self:
        """The model in a converted folder, in `dtype` or what suits the device.

        Raises ConfigError, TokenizerError or WeightsError.
        """
        folder = Path(folder)
        config = read_config(folder, CanaryConfig)
        dtype = dtype or default_dtype()
        footprint(folder, config).reserve(dtype)
        canary = cls(config, load_tokenizer(folder, config.tokenizer, REQUIRED_TOKENS))
        weights.load(canary, folder / WEIGHTS_FILE, dtype, config.quantization)
        if (folder / ALIGNER_DIR / CONFIG_FILE).exists():
            canary._aligner = cache(lambda: Aligner.load(folder / ALIGNER_DIR, dtype))
        return canary

    @classmethod
    def memory_need(cls, folder: Path, dtype: str) -> Need:
        """What the model in a converted folder takes in `dtype`. Raises ConfigError or WeightsError."""
        return footprint(Path(folder), read_config(folder, CanaryConfig)).need(dtype)

    def projected(self, vectors: Array) -> Array:
        return self.encoder_decoder_proj(vectors) if "encoder_decoder_proj" in self else vectors

    def forced_log_probs(self, tokens: list[list[int]], encoded: Array, lengths: list[int]) -> Array:
        """Log-probabilities (B, S, V) of what follows each of the given tokens (B, S). encoded: (B, T, M)."""
        hidden, _ = self.decoder.prefill(tokens, self.decoder.cross_memory(encoded, lengths))
        return self.head(hidden, self.decoder.token_embedding)

    def encodings(self, waveforms: list[np.ndarray], between_layers: Callable[[], None] | None = None) -> list[Encoded]:
        """The encoding of each waveform, those shorter than a second padded. between_layers: see `family.Model`."""
        waveforms = [at_least_a_second(w) for w in waveforms]
        groups = [waveforms] if self.encodes_together else [[w] for w in waveforms]
        return [each for group in groups for each in self.encoded_together(group, between_layers=between_layers)]

    def growing_encodings(self, waveforms: list[np.ndarray], before: list[Encoded | None]) -> list[Encoded]:
        """The encodings of audios (N,) that go on growing. before: that of a shorter part of each, from its beginning.

        At first they are what `encodings` gives. Later only what is new is computed, see `Listener.encoded_further`.
        """
        if self.config.encoder.local_context is not None:
            return self.encodings(waveforms)
        encodings = self.encoded_further([at_least_a_second(waveform) for waveform in waveforms], before)
        began = time.monotonic()
        new = [encoded.vectors[encoded.reused :] for encoded in encodings]
        ends = np.cumsum([vectors.shape[0] for vectors in new]).tolist()
        together = self.decoder.cross_memory(self.xp.concatenate(new)[None], ends[-1:]).layers
        memories = []
        for known, encoded, vectors, end in zip(before, encodings, new, ends, strict=True):
            memory = [kv[:, :, end - vectors.shape[0] : end] for kv in together]
            if known and known.memory and encoded.reused:
                kept = zip(known.memory, memory, strict=True)
                memory = [self.xp.concatenate([old[:, :, : encoded.reused], kv], axis=2) for old, kv in kept]
            memories.append(memory)
        self.xp.evaluate(*(kv for memory in memories for kv in memory))
        took_s = time.monotonic() - began
        return [
            replace(encoded, memory=memory, encode_s=encoded.encode_s + took_s)
            for encoded, memory in zip(encodings, memories, strict=True)
        ]

    def long_encoding(self, waveform: np.ndarray, between_layers: Callable[[], None] | None = None) -> Encoded:
        """Not for a Canary: its decoder has no room for a long text."""
        raise NotImplementedError(f"{self.config.name} does not take audio of any length")

    def detect_language(self, encoded: Encoded) -> Detection:
        """The spoken language: the one that the model itself finds most probable at its place in the prompt."""
        codes = self.config.languages
        memory = self._memory(encoded)
        if self.config.prompt_format == "canary":
            scores = self._scores_of_prompts([self.prompt(Task(code)) for code in codes], memory)
        else:
            tokens = language_query_tokens(self.tokenizer)
            tokens = [*tokens, int(self._log_probs([tokens], memory)[0, -1].argmax())]
            ids = [self.tokenizer.special_id(f"<|{code}|>") for code in codes]
            scores = self._log_probs([tokens], memory)[0, -1, ids]
        chances = np.exp(scores - scores.max())
        return detection_from(dict(zip(codes, (chances / chances.sum()).tolist(), strict=True)))

    def _scores_of_prompts(self, prompts: list[list[int]], memory: CrossMemory) -> np.ndarray:
        """(R,) log-probabilities of prompts of one length, each with the text token most likely to follow."""
        log_probs = self._log_probs(prompts, memory)
        written = np.take_along_axis(log_probs[:, :-1], np.array(prompts)[:, 1:, None], axis=2)
        return written.sum(axis=(1, 2)) + log_probs[:, -1].max(axis=1)

    def _log_probs(self, tokens: list[list[int]], memory: CrossMemory) -> np.ndarray:
        """Log-probabilities (R, S, V) of what follows each of tokens (R, S). memory: of one audio, for all rows."""
        hidden, _ = self.decoder.prefill(tokens, memory.of_rows([0] * len(tokens)))
        return self.xp.to_numpy(self.head(hidden, self.decoder.token_embedding))

    def piece(self, key: int, vectors: Array, state: Any, head: str | None = None) -> Utterance:
        """Not for a Canary: its decoder attends to the whole audio."""
        raise NotImplementedError(f"{self.config.name} does not decode in pieces")

    def attention(self, encoded: Encoded, task: Task, tokens: list[int]) -> np.ndarray:
        """Which encoder steps each of `tokens` was written from: (len(tokens), T), rows summing to 1."""
        return self.cross_attention(encoded, self.prompt(task), tokens)

    def cross_attention(self, encoded: Encoded, prompt: list[int], tokens: list[int]) -> np.ndarray:
        """`attention` for a prompt given as tokens."""
        # Source: NeMo's AlignAtt policy. A token is written from reading the one before it.
        watched = Watched(self._memory(encoded), self.decoder.alignment_layer, [0])
        self.decoder.prefill([prompt + tokens], watched)
        return self.xp.to_numpy(watched.seen[0])[len(prompt) - 1 : -1]

    def _memory(self, encoded: Encoded) -> CrossMemory:
        """What the decoder attends to of one audio."""
        if encoded.memory is not None:
            return self.decoder.memory_of(encoded.memory)
        return self.decoder.cross_memory(encoded.vectors[None], [encoded.vectors.shape[0]])

    def prompt(self, task: Task) -> list[int]:
        """The decoder's first tokens for `task`. Raises TaskError."""
        return prompt_tokens(task, self.config, self.tokenizer)

    def utterance(
        self,
        key: int,
        encoded: Encoded,
        task: Task,
        options: DecodingOptions,
        prefix: tuple[int, ...] = (),
        attention: bool = False,
        before: TextMemory | None = None,
        draft: tuple[int, ...] = (),
    ) -> Utterance:
        """One text, for `RunningBatch.join`. See `family.Model`. Raises TaskError."""
        self.config.check_options(options)
        utterance = self.prompted(key, encoded, [*self.prompt(task), *prefix], options)
        grows = encoded.memory is not None
        if before and not grows:
            # What was written earlier was written from another encoding: of it, only the tokens are of use.
            before = TextMemory(before.tokens, [])
        if draft and not before:
            before = TextMemory([*utterance.prompt, *draft], [])
        return replace(utterance, memory=encoded.memory, attention=attention, before=before, remember=grows)

    def prompted(self, key: int, encoded: Encoded, prompt: list[int], options: DecodingOptions) -> Utterance:
        """`utterance` for a prompt given as tokens: NeMo's length limit, and the model's own search by default."""
        decoding = self.config.decoding
        limit = new_token_limit(
            encoded.total_steps, len(prompt), self.config.decoder.max_sequence_length, decoding.max_generation_delta
        )
        return Utterance(
            key,
            encoded.vectors,
            prompt,
            min(limit, options.max_new_tokens or limit),
            decoding.beam_size if options.beam_size is None else options.beam_size,
            decoding.length_penalty if options.length_penalty is None else options.length_penalty,
        )

    @property
    def _no_speech_id(self) -> int | None:
        return self.tokenizer.special.get(NO_SPEECH)

    def running_batch(self) -> RunningBatch:
        """An empty batch to decode in."""
        end_id, pad_id = (self.tokenizer.special_id(token) for token in (END, PAD))
        return RunningBatch(
            self.decoder, self.head, end_id, pad_id, self._no_speech_id, time_ids=self.tokenizer.time_steps
        )

    def generate(
        self, encoded: list[Encoded], prompts: list[list[int]], options: DecodingOptions = DecodingOptions()
    ) -> list[Generated]:
        """The tokens that follow each prompt, all decoded side by side."""
        batch = self.running_batch()
        keyed = enumerate(zip(encoded, prompts, strict=True))
        finished = batch.join([self.prompted(i, audio, prompt, options) for i, (audio, prompt) in keyed])
        while batch.rows:
            finished += batch.step()
        return sorted(finished, key=lambda generated: generated.key)

    def transcribe(
        self, waveforms: list[np.ndarray], tasks: Task | list[Task], options: DecodingOptions = DecodingOptions()
    ) -> list[Transcript]:
        """Transcripts of 16 kHz mono float32 waveforms, decoded together. tasks: one for all, or one for each.

        Raises TaskError for what the model cannot do.
        """
        if isinstance(tasks, Task):
            tasks = [tasks] * len(waveforms)
        prompts = [self.prompt(task) for task in tasks]
        encoded = self.encodings(waveforms)
        generated = self.generate(encoded, prompts, options)
        return [self.transcript(*each) for each in zip(generated, waveforms, tasks, encoded, strict=True)]

    def transcript(self, generated: Generated, waveform: np.ndarray, task: Task, encoded: Encoded) -> Transcript:
        """Tokens as text, with the times that `task` asks for: the model's own, the aligner's or cross-attention's."""
        duration = len(waveform) / SAMPLE_RATE
        early = padding_before(len(waveform)) / SAMPLE_RATE
        source = None
        if generated.tokens[:1] == [self._no_speech_id]:
            segments = ()
        elif task.timestamps != "none" and self.config.writes_times:
            source = "model"
            segments = timed_segments(generated, self.tokenizer, self.config.step_s, duration, early)
        elif task.timestamps != "none" and (words := written_words(generated.tokens, self.tokenizer)):
            source = "aligner"
            times = self._aligned(waveform, task, " ".join(word.text for word in words))
            if times is None:
                source = "cross_attention"
                attention = self.cross_attention(encoded, self.prompt(task), generated.tokens)
                times = attention_times(attention, words, waveform, self.config.step_s, early)
            segments = sentences(words, times, generated, self.tokenizer)
        else:
            segments = whole_segment(generated, self.tokenizer, duration)
        text = " ".join(segment.text for segment in segments)
        return Transcript(text, task.language, task.target, duration, segments, source)

    def _aligned(self, waveform: np.ndarray, task: Task, text: str) -> list[tuple[float, float]] | None:
        """The words' times from the aligner, if there is one. In a translation it times sentences, not words."""
        if not self._aligner or (task.is_translation and task.timestamps == "word"):
            return None
        return self._aligner().word_times(waveform, text)


def footprint(folder: Path, config: CanaryConfig) -> Footprint:
    """What decides how much memory the model takes, its aligner included."""
    decoder, steps = config.decoder, int(config.longest_s / config.step_s)
    positions = decoder.max_sequence_length + steps
    cached = 2 * decoder.num_layers * positions * decoder.hidden_size
    files = (folder / WEIGHTS_FILE, folder / ALIGNER_DIR / WEIGHTS_FILE)
    return Footprint(config.name, files, config.quantization, config.encoder, steps, cached)


def padding_before(samples: int) -> int:
    """How many zeros NeMo's transcribe() puts before audio shorter than a second."""
    return max(0, int(MIN_DURATION_S * SAMPLE_RATE) - samples) // 2


def at_least_a_second(waveform: np.ndarray) -> np.ndarray:
    """Shorter audio zero-padded on both sides to one second, as NeMo's transcribe() does."""
    missing = int(MIN_DURATION_S * SAMPLE_RATE) - len(waveform)
    if missing <= 0:
        return waveform
    before = padding_before(len(waveform))
    return np.pad(waveform, (before, missing - before))
