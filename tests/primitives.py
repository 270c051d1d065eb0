"""The primitives of a decode step and of an encoder layer, on small ones with random weights."""

from collections import Counter

import mlx.core as mx

from model.canary.config import DecoderConfig
from model.canary.decoder import Decoder, Head
from model.canary.generate import RunningBatch, Utterance
from model.config import EncoderConfig
from model.encoder import ConformerLayer
from server.cli.doctor import primitives


def of_step(layers: int) -> Counter[str]:
    """Of two rows of unequal lengths, with so many decoder layers."""
    decoder, head = Decoder(DecoderConfig(32, 64, layers, 4, 64), 16), Head(16)
    mx.eval(decoder.parameters(), head.parameters())
    batch = RunningBatch(decoder, head, end_id=-1, pad_id=-1, look_ahead=False)
    batch.join([Utterance(steps, mx.ones((steps, 32)), [1] * steps, 99) for steps in (9, 10)])
    batch.step()
    return primitives.of_step(batch)


def of_encoder_layer(padded: bool) -> Counter[str]:
    """padded: for audios of unequal lengths."""
    config = EncoderConfig(feat_in=80, n_layers=1, d_model=32, n_heads=4, subsampling_conv_channels=8)
    return primitives.of_encoder_layer(ConformerLayer(config), padded)
