"""The primitives of a decode step and of an encoder layer, on small ones with random weights."""

from collections import Counter

import mlx.core as mx

from model.canary.config import DecoderConfig
from model.canary.decoder import Decoder, Head
from model.canary.generate import RunningBatch
from model.canary.rows import Utterance
from model.config import EncoderConfig
from model.encoder import ConformerLayer
from model.parakeet.config import JointConfig, PredictionConfig
from model.parakeet.decoding import Utterance as ParakeetUtterance
from model.parakeet.joint import Joint
from model.parakeet.prediction import PredictionNetwork
from model.parakeet.transducer import GreedyRows, Transducer
from server.cli.doctor import primitives
from server.cli.doctor.primitives import counted


def of_step(layers: int, attention: bool = False) -> Counter[str]:
    """Of two rows of unequal lengths, with so many decoder layers; attention: which both ask for."""
    decoder, head = Decoder(DecoderConfig(32, 64, layers, 4, 64), 16), Head(16)
    mx.eval(decoder.parameters(), head.parameters())
    batch = RunningBatch(decoder, head, end_id=-1, pad_id=-1, look_ahead=False)
    batch.join([Utterance(n, mx.ones((n, 32)), [1] * n, 99, attention=attention) for n in (9, 10)])
    batch.step()
    return primitives.of_step(batch)


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
    """padded: for audios of unequal lengths."""
    config = EncoderConfig(feat_in=80, n_layers=1, d_model=32, n_heads=4, subsampling_conv_channels=8)
    return primitives.of_encoder_layer(ConformerLayer(config), padded)
