"""A small Canary with random weights, loud enough that what it writes depends on sound, position and history."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import settings
from mlx.utils import tree_map_with_path

from model.canary.config import CanaryConfig
from model.canary.model import CanaryModel
from model.canary.prompt import END
from model.cpu import prepacked, row_graph
from model.cpu.layout import lay_out
from model.decoding import Encoded
from model.tokenizer import PAD
from tests.configs import canary_config

M = TypeVar("M", bound=nn.Module)

# `make quick` tries a twentieth of the examples that `make test` does.
settings.register_profile("quick", max_examples=5)


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("Unit tests start no processes. Put this test in tests/process.")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


VOCAB = 64
MAX_SEQUENCE = 128


class PlainTokenizer:
    """Text is ids written as numbers; special tokens get ids as they are asked for."""

    special: dict[str, int] = {END: 3, PAD: 2}  # noqa: RUF012
    time_steps: dict[int, int] = {}  # noqa: RUF012

    def special_id(self, token: str) -> int:
        return self.special.get(token, 5 + sum(token.encode()) % 50)

    def encode_prompt(self, text: str) -> list[int]:
        return [self.special_id(token) for token in text.split("<") if token]

    def encode(self, text: str, language: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def is_special(self, token: int) -> bool:
        return False

    def starts_word(self, token: int) -> bool:
        return True


def tiny_config(**encoder) -> CanaryConfig:
    config = canary_config("tiny", longest=MAX_SEQUENCE)
    return replace(
        config,
        preprocessor=replace(config.preprocessor, features=encoder.get("feat_in", 80)),
        encoder=replace(config.encoder, **encoder),
    )


def tiny_canary(seed: int = 0, **encoder) -> CanaryModel:
    canary = CanaryModel(tiny_config(**encoder), PlainTokenizer())  # type: ignore[arg-type]
    random = np.random.default_rng(seed)

    def drawn(path: str, like: mx.array) -> mx.array:
        values = random.standard_normal(like.shape).astype(np.float32)
        if path == "preprocessor.fb":
            return mx.array(np.abs(values))
        if "norm" in path and path.endswith("weight"):
            return mx.array(1 + 0.1 * values)
        if path == "decoder.position_encoding":
            return mx.array(0.5 * values)
        loud = 3.0 if path.startswith("decoder.layers") else 1.0
        return mx.array(values * (loud / max(1, like.shape[-1]) ** 0.5 if like.ndim > 1 else 0.1))

    canary.update(tree_map_with_path(drawn, canary.parameters()))
    mx.eval(canary.parameters())
    return canary


def randomized(module: M) -> M:
    """`module` itself, with random parameters, the same ones each time."""
    rng = np.random.default_rng(0)
    module.update(tree_map_with_path(lambda _, v: mx.array(0.4 * rng.standard_normal(v.shape)), module.parameters()))
    mx.eval(module.parameters())
    return module


def drawn(*shape: int, seed: int | None = None) -> np.ndarray:
    """Random numbers, other ones for other shapes unless a seed is given."""
    return np.random.default_rng(sum(shape) if seed is None else seed).standard_normal(shape).astype(np.float32)


def prepack(patch: pytest.MonkeyPatch) -> None:
    """As on one thread of a CPU, and narrow weights as well as wide ones."""
    patch.setattr(sys, "platform", "linux")
    patch.setattr(prepacked, "thread_count", lambda: 1)
    patch.setattr(prepacked, "_NARROWEST", 1)


@pytest.fixture
def one_thread(monkeypatch) -> None:
    prepack(monkeypatch)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(monkeypatch, request) -> Iterator[None]:
    """That share the rows of a graph."""
    monkeypatch.setattr(row_graph, "thread_count", lambda: request.param)
    row_graph._threads.cache_clear()
    yield
    row_graph._threads.cache_clear()


@pytest.fixture(scope="session", params=["of MLX's arrays", "of numpy's arrays", "of numpy's arrays and graphs"])
def canary(request) -> CanaryModel:
    """As a GPU computes, and as a CPU does with several threads and with one."""
    canary = tiny_canary()
    with pytest.MonkeyPatch.context() as patch:
        if request.param.endswith("graphs"):
            prepack(patch)
        if "numpy" in request.param:
            lay_out(canary)
    return canary


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and colour wander, so that every stretch sounds different."""
    random = np.random.default_rng(seed)
    n = int(seconds * 16000)
    white = random.standard_normal(n)
    swell = np.interp(np.arange(n), np.linspace(0, n, 12), random.uniform(0.01, 0.5, 12))
    return (np.convolve(white, random.uniform(-1, 1, 9), "same") * swell * 0.2).astype(np.float32)


@pytest.fixture(scope="session")
def sounds() -> list[np.ndarray]:
    """Eight of mixed lengths."""
    return [noise(s, seed) for seed, s in enumerate((1.0, 3.7, 2.01, 5.5, 1.31, 4.0, 2.9, 7.77))]


@pytest.fixture(scope="session")
def encoded(canary, sounds) -> list[Encoded]:
    """The sounds, encoded."""
    return canary.encodings(sounds)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Eight of mixed lengths."""
    random = np.random.default_rng(7)
    return [random.integers(4, VOCAB, size=n).tolist() for n in (9, 5, 10, 9, 7, 12, 9, 6)]
