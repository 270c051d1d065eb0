"""What other threads, and people, know of a loaded model."""

from dataclasses import dataclass

from model.family import ModelConfig
from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelInfo:
    """dtype: what it computes in; device: where, for people; load_s: how many seconds loading took."""

    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str
    device: str
    load_s: float

    @property
    def name(self) -> str:
        return self.config.name
