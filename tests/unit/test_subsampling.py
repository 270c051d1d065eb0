"""The subsampling gives the same steps however they are divided into stretches and batches, on both arrays."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from model import subsampling
from model.canary.model import CanaryModel
from model.subsampling import Subsampling, subsampled
from tests.unit.conftest import drawn, tiny_canary

STRETCHES = [1, 2, 3, 16, 1000]


@pytest.fixture(params=STRETCHES, autouse=True)
def _stretch(request, monkeypatch):
    monkeypatch.setattr(subsampling, "STRETCH", request.param)
    monkeypatch.setattr(subsampling, "GPU_STRETCH", request.param)


def steps(canary: CanaryModel, mel: np.ndarray, lengths: list[int] | None = None, first: int = 0) -> np.ndarray:
    valid = None if lengths is None else canary.xp.asarray(np.array(lengths))
    return np.array(canary.encoder.subsampling(canary.xp.asarray(mel), valid, first))


def by_torch(layers: Subsampling, mel: np.ndarray) -> np.ndarray:
    """The whole at once. mel: (B, T, n_mels) → (B, T', D)"""

    def convolved(x: torch.Tensor, layer, **options) -> torch.Tensor:
        weight, bias = (torch.from_numpy(np.array(each)) for each in (layer.weight, layer.bias))
        weight = weight.permute(0, 3, 1, 2) if weight.ndim == 4 else weight[:, :, None, None]
        return conv2d(x, weight, bias, **options)

    x = convolved(torch.from_numpy(mel)[:, None], layers.conv_in, stride=2, padding=1).relu()
    for depthwise, pointwise in (layers.depthwise1, layers.pointwise1), (layers.depthwise2, layers.pointwise2):
        x = convolved(x, depthwise, stride=2, padding=1, groups=x.shape[1])
        x = convolved(x, pointwise).relu()
    maps = x.permute(0, 2, 3, 1).flatten(2).numpy()
    return maps @ np.array(layers.out.weight).T + np.array(layers.out.bias)


@pytest.mark.parametrize("frames", [1, 8, 9, 63, 64, 65, 203])
def test_it_is_the_convolutions_of_the_whole(canary, frames):
    mel = drawn(2, frames, 80)
    found = steps(canary, mel)
    assert found.shape == (2, subsampled(frames), 32)
    np.testing.assert_allclose(found, by_torch(tiny_canary().encoder.subsampling, mel), atol=5e-5)


@pytest.mark.parametrize("first", [0, 1, 2, 7, 15, 16, 24])
def test_steps_can_be_computed_from_any_one_on(canary, first):
    mel = drawn(1, 200, 80)
    np.testing.assert_allclose(steps(canary, mel, first=first), steps(canary, mel)[:, first:], atol=5e-5)


def test_a_row_of_a_padded_batch_gives_the_steps_that_it_gives_alone(canary):
    # What is past a row's length counts as zeros, whatever it is.
    mel, lengths = drawn(4, 200, 80), [200, 130, 65, 8]
    together = steps(canary, mel, lengths)
    for row, length in enumerate(lengths):
        alone = steps(canary, mel[row : row + 1, :length])[0]
        np.testing.assert_allclose(together[row, : subsampled(length)], alone, atol=5e-5)
