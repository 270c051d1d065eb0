"""Counts the primitives of a computation with MLX's arrays. On a GPU each is a kernel to launch, 3 to 5 µs.

A fused operation, such as `mx.fast.layer_norm`, counts as one. A CPU computes it with several primitives, which are
taken off again. Views do not count: they launch nothing.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from model.canary.config import DecoderConfig
from model.canary.decoder import Decoder, Head
from model.canary.generate import RunningBatch, Utterance
from model.config import EncoderConfig
from model.encoder import ConformerLayer
from model.parakeet.config import JointConfig, PredictionConfig
from model.parakeet.decoding import Utterance as ParakeetUtterance
from model.parakeet.joint import Joint
from model.parakeet.prediction import PredictionNetwork
from model.parakeet.transducer import GreedyRows, Transducer

FUSED = ("layer_norm", "scaled_dot_product_attention")
VIEWS = {"AsStrided", "Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}


@contextmanager
def counted() -> Iterator[Callable[..., Counter[str]]]:
    """Yields count(*arrays): how often each primitive is in the graph of arrays that were made inside."""
    corrections: Counter[str] = Counter()
    originals = {name: getattr(mx.fast, name) for name in FUSED}

    def fused(name: str) -> Callable[..., mx.array]:
        def call(*args: Any, **options: Any) -> mx.array:
            leaves = [_leaf(each) for each in args]
            corrections.subtract(_primitives(originals[name](*leaves, **{k: _leaf(v) for k, v in options.items()})))
            corrections[name] += 1
            return originals[name](*args, **options)

        return call

    def count(*arrays: mx.array) -> Counter[str]:
        counter = _primitives(*arrays)
        counter.update(corrections)
        corrections.clear()
        return +counter

    for name in FUSED:
        setattr(mx.fast, name, fused(name))
    try:
        yield count
    finally:
        for name, original in originals.items():
            setattr(mx.fast, name, original)


def _leaf(value: Any) -> Any:
    """An array of the same shape with nothing to compute before it."""
    if not isinstance(value, mx.array):
        return value
    leaf = mx.zeros(value.shape, value.dtype)
    mx.eval(leaf)
    return leaf


def _primitives(*arrays: mx.array) -> Counter[str]:
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        names = re.findall(r'label ="([^"]*)", shape=rectangle', file.read())
    return Counter(name for name in names if name not in VIEWS)


def of_step(layers: int) -> Counter[str]:
    """The primitives of a decode step of two rows of unequal lengths, with so many decoder layers."""
    decoder, head = Decoder(DecoderConfig(32, 64, layers, 4, 64), 16), Head(16)
    mx.eval(decoder.parameters(), head.parameters())
    batch = RunningBatch(decoder, head, end_id=-1, pad_id=-1, look_ahead=False)
    batch.join([Utterance(steps, mx.ones((steps, 32)), [1] * steps, 99) for steps in (9, 10)])
    batch.step()
    with counted() as count:
        return count(*batch._written(batch._last_tokens()))


def of_transducer_round(lstm_layers: int, durations: tuple[int, ...]) -> Counter[str]:
    """The primitives of a round of label looping, for two recordings: the search for their next token."""
    outputs = 16 + len(durations)
    prediction = PredictionNetwork(PredictionConfig(hidden=8, layers=lstm_layers), vocab_size=15)
    joint = Joint(JointConfig(hidden=8), encoder_width=32, prediction_width=8, outputs=outputs)
    mx.eval(prediction.parameters(), joint.parameters())
    batch = GreedyRows(Transducer(prediction, joint, 16, durations, max_symbols=10), look_ahead=False)
    batch.join([ParakeetUtterance(steps, mx.ones((steps, 32))) for steps in (9, 10)])
    position = batch._position
    assert position is not None
    mx.eval(batch._frames, batch._first, batch._lengths, position.frame, position.written, position.memory)
    with counted() as count:
        after, written = batch._round(position)
        return count(*written, after.frame, after.written, *after.memory)


def of_encoder_layer(padded: bool) -> Counter[str]:
    """The primitives of an encoder layer; padded: for audios of unequal lengths."""
    layer = ConformerLayer(EncoderConfig(feat_in=80, n_layers=1, d_model=32, n_heads=4, subsampling_conv_channels=8))
    x, inside = mx.ones((2, 20, 32)), mx.ones((2, 20, 1), mx.bool_) if padded else None
    # The first time, it projects positions.
    mx.eval(layer(x, inside), x, inside)
    with counted() as count:
        return count(layer(x, inside))
