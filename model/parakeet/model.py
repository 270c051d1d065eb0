"""The whole model: `ParakeetModel.load` a converted folder, then waveforms to encoder vectors."""

from pathlib import Path
from typing import Self

import numpy as np

from model import weights
from model.arrays import default_dtype
from model.config import WEIGHTS_FILE, read_config
from model.decoding import Encoded
from model.footprint import Footprint
from model.layers import Linear
from model.listening import Listener
from model.memory import Need
from model.parakeet.config import ParakeetConfig
from model.parakeet.joint import Joint
from model.parakeet.prediction import PredictionNetwork
from model.tokenizer import Tokenizer, load_tokenizer


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

    @classmethod
    def load(cls, folder: Path, dtype: str | None = None) -> Self:
        """The model in a converted folder, in `dtype` or what suits the device. A transducer's own is float32.

        Raises ConfigError, TokenizerError or WeightsError.
        """
        folder = Path(folder)
        config = read_config(folder, ParakeetConfig)
        dtype = dtype or default_dtype()
        footprint(folder, config).reserve(dtype)
        parakeet = cls(config, load_tokenizer(folder, config.tokenizer))
        weights.load(parakeet, folder / WEIGHTS_FILE, dtype, config.quantization)
        return parakeet

    @classmethod
    def memory_need(cls, folder: Path, dtype: str) -> Need:
        """What the model in a converted folder takes in `dtype`. Raises ConfigError or WeightsError."""
        return footprint(Path(folder), read_config(folder, ParakeetConfig)).need(dtype)

    def encodings(self, waveforms: list[np.ndarray], local: tuple[int, int] | None = None) -> list[Encoded]:
        """The encoding of each waveform. local: see `FastConformer`."""
        waveforms = [self._at_least_a_step(w) for w in waveforms]
        groups = [waveforms] if self.encodes_together else [[w] for w in waveforms]
        return [encoded for group in groups for encoded in self.encoded_together(group, local)]

    def _at_least_a_step(self, waveform: np.ndarray) -> np.ndarray:
        """Shorter audio zero-padded to one encoder step. NeMo refuses audio that is too short to normalise."""
        missing = int(self.config.step_s * self.config.preprocessor.sample_rate) - len(waveform)
        return np.pad(waveform, (0, missing)) if missing > 0 else waveform


def footprint(folder: Path, config: ParakeetConfig) -> Footprint:
    """What decides how much memory the model takes."""
    steps = int(config.longest_s / config.step_s)
    # A transducer keeps each encoder step as its joint network takes it.
    cached = steps * config.joint.hidden if config.joint else 0
    return Footprint(config.name, (folder / WEIGHTS_FILE,), config.quantization, config.encoder, steps, cached)
