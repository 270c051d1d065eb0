"""Audio that grows: what an encoder keeps of it, so that only new steps are computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.arrays import Array


@dataclass
class LayerPast:
    """What a Conformer layer needs of the steps of one audio that it has computed already.

    kv: attention's keys and values (1, 2H, T, d); gated: the depthwise convolution's input (1, ≤ T, D), as much as its
    kernel reaches back. None before the first step. A layer that computes more steps adds theirs.
    """

    kv: Array = None
    gated: Array = None

    def add_keys(self, kv: Array, xp: Any) -> Array:
        """Add the keys and values (1, 2H, t, d) of new steps; returns those of all steps."""
        self.kv = kv if self.kv is None else xp.concatenate([self.kv, kv], axis=2)
        return self.kv

    def add_gated(self, gated: Array, xp: Any) -> Array:
        """Add the convolution's input (1, t, D) of new steps; returns that of as many earlier ones as are kept, too."""
        self.gated = gated if self.gated is None else xp.concatenate([self.gated, gated], axis=1)
        return self.gated

    def up_to(self, steps: int, total: int, reach: int) -> "LayerPast":
        """Without what is later than the first `steps` of `total`. reach: how far the kernel reaches back."""
        end = self.gated.shape[1] - (total - steps)
        return LayerPast(self.kv[:, :, :steps], self.gated[:, max(0, end - reach) : end])


@dataclass(frozen=True)
class Growing:
    """Audios whose new steps stand one after the other in one row, so that each weight is read once for all.

    pasts: what the layer knows of each; ends: where each one's new steps end.
    """

    pasts: list[LayerPast]
    ends: list[int]

    def each(self) -> Iterator[tuple[LayerPast, slice]]:
        """The past of each audio, and where its new steps are."""
        for past, first, stop in zip(self.pasts, [0, *self.ends], self.ends, strict=False):
            yield past, slice(first, stop)


@dataclass(frozen=True, eq=False)
class EncoderPast:
    """What an encoder goes on from when audio has grown: its first `steps` steps, in every layer. It never changes.

    whole: how many steps there were when all of them were computed.
    """

    steps: int
    whole: int
    layers: list[LayerPast]
