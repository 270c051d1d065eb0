"""Small Parakeet `.nemo` files, built without NeMo, with the oddities of published ones.

Names and shapes are taken from NeMo's own files, independently of the tables in `convert` that they test. The same
functions make archives of full size:

    python -m tests.parakeet_archives parakeet-tdt_ctc-110m folder
"""

import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml

from convert.convert import ConversionConfig, convert
from server.cli.doctor.compared import GOLDENS
from tests import archives
from tests.archives import RandomTensors, checkpoint, md5, sentencepiece_model, write_archive


def converted_in(folder: Path) -> Callable[[str], Path]:
    """converted(name): the converted folder, below `folder`, of one of the archives that NeMo built; converted once."""

    @cache
    def converted(name: str) -> Path:
        return convert(ConversionConfig(source=GOLDENS / "parakeet" / f"{name}.nemo", output=folder / name))

    return converted


@dataclass(frozen=True)
class Shape:
    """A Parakeet's heads and sizes. durations: None for an RNN-T; vocab: None for as many as the tokenizer has."""

    heads: tuple[str, ...]
    bands: int = 80
    bias: bool = True
    xscaling: bool = False
    kernel: int = 9
    local_context: int = 0
    lstm_layers: int = 2
    durations: tuple[int, ...] | None = None
    layers: int = 2
    d: int = archives.D
    channels: int = archives.CHANNELS
    encoder_heads: int = archives.HEADS
    prediction: int = 24
    joint: int = 28
    vocab: int | None = None
    languages: tuple[str, ...] = ()


TDT = (0, 1, 2, 3, 4)
VARIANTS = {
    "ctc": Shape(("ctc",), xscaling=True),
    "rnnt": Shape(("transducer",), xscaling=True, kernel=5),
    "tdt": Shape(("transducer",), bands=128, bias=False, durations=TDT, languages=("en", "uk", "zu")),
    "tdt_ctc": Shape(("transducer", "ctc"), lstm_layers=1, durations=TDT),
    "tdt_ctc-local": Shape(("transducer", "ctc"), local_context=16, durations=(0, 1, 2, 4)),
}

_FULL = Shape((), layers=24, d=1024, channels=256, encoder_heads=8, prediction=640, joint=640, vocab=1024)
_XL = replace(_FULL, layers=42)
# With the number of parameters, and of tensors in NeMo's checkpoint.
PUBLISHED = {
    "parakeet-ctc-0.6b": (replace(_FULL, heads=("ctc",), xscaling=True), 608_799_745, 976),
    "parakeet-ctc-1.1b": (replace(_XL, heads=("ctc",), xscaling=True), 1_062_540_289, 1696),
    "parakeet-rnnt-0.6b": (replace(_FULL, heads=("transducer",), xscaling=True), 616_692_225, 989),
    "parakeet-rnnt-1.1b": (replace(_XL, heads=("transducer",), xscaling=True), 1_070_432_769, 1709),
    "parakeet-tdt-1.1b": (replace(_XL, heads=("transducer",), durations=TDT), 1_070_435_974, 1709),
    "parakeet-tdt_ctc-110m": (
        replace(_FULL, heads=("transducer", "ctc"), layers=17, d=512, lstm_layers=1, durations=TDT),
        114_624_647,
        707,
    ),
    "parakeet-tdt_ctc-1.1b": (
        replace(_XL, heads=("transducer", "ctc"), local_context=128, durations=TDT),
        1_071_486_599,
        1711,
    ),
    "parakeet-tdt-0.6b-v2": (
        replace(_FULL, heads=("transducer",), bands=128, bias=False, durations=TDT),
        617_825_926,
        725,
    ),
    "parakeet-tdt-0.6b-v3": (
        replace(_FULL, heads=("transducer",), bands=128, bias=False, durations=TDT, vocab=8192),
        627_008_134,
        725,
    ),
    "parakeet-unified-en-0.6b": (
        replace(_FULL, heads=("transducer",), bands=128, xscaling=True),
        618_265_089,
        989,
    ),
}


def tokenizer(shape: Shape) -> bytes:
    """A SentencePiece model with a token for each language."""
    symbols = tuple(f"<|{language}|>" for language in shape.languages)
    size = sentencepiece_model("parakeet", symbols)
    return size if shape.vocab is None else _padded(size, shape.vocab)


def _padded(model: bytes, pieces: int) -> bytes:
    """The model with as many more pieces as it takes."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for i in range(pieces - len(proto.pieces)):
        proto.pieces.add(piece=f"▁x{i}", score=-1000.0 - i)
    return proto.SerializeToString()


def vocabulary(shape: Shape) -> int:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer(shape)).vocab_size()


def config(shape: Shape) -> dict[str, Any]:
    """`model_config.yaml`: like published ones, it leaves out what NeMo knows, and names heads that are not there."""
    encoder = archives.encoder_config(
        feat_in=shape.bands,
        n_layers=shape.layers,
        d_model=shape.d,
        n_heads=shape.encoder_heads,
        subsampling_conv_channels=shape.channels,
    )
    if shape.xscaling:
        del encoder["xscaling"]
    if shape.local_context:
        encoder |= {"self_attention_model": "rel_pos_local_attn", "att_context_size": [shape.local_context] * 2}
    models = "nemo.collections.asr.models"
    values = {
        "target": f"{models}.ctc_bpe_models.EncDecCTCModelBPE",
        "preprocessor": archives.config("180m-flash")["preprocessor"] | {"features": shape.bands},
        "encoder": encoder,
        "decoder": {"num_classes": -1, "vocabulary": []},
        "tokenizer": {"type": "bpe", "model_path": f"nemo:{md5('parakeet')}_tokenizer.model"},
        "decoding": {"strategy": "greedy"},
    }
    if "transducer" in shape.heads:
        hybrid = "ctc" in shape.heads
        values |= {
            "target": f"{models}.EncDecHybridRNNTCTCBPEModel" if hybrid else f"{models}.EncDecRNNTBPEModel",
            "decoder": {"prednet": {}, "blank_as_pad": True, "normalization_mode": None},
            "joint": {"jointnet": {}, "num_extra_outputs": len(shape.durations or ())},
            "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 7}},
            "aux_ctc": {"decoder": {"num_classes": -1, "vocabulary": []}},
        }
        if shape.durations:
            values["decoding"] |= {"model_type": "tdt", "durations": list(shape.durations)}
    return values


class ModestTensors(RandomTensors):
    """Random values that stay modest on their way through many wide layers."""

    def tensor(self, name: str, *shape: int) -> None:
        super().tensor(name, *shape)
        if len(shape) > 1 and not name.startswith("preprocessor."):
            self[name] *= 2 / self[name][0].numel() ** 0.5


def tensors(shape: Shape, values: RandomTensors | None = None) -> RandomTensors:
    """`model_weights.ckpt`. values: what to add the tensors to."""
    values, rows = RandomTensors(seed=3) if values is None else values, vocabulary(shape) + 1
    archives.encoder_tensors(
        values, shape.d, shape.layers, shape.channels, shape.bias, shape.bands, shape.kernel, shape.encoder_heads
    )
    if "transducer" in shape.heads:
        prediction, joint = shape.prediction, shape.joint
        values.tensor("decoder.prediction.embed.weight", rows, prediction)
        values["decoder.prediction.embed.weight"][-1] = 0
        for k in range(shape.lstm_layers):
            for source in ("ih", "hh"):
                values.tensor(f"decoder.prediction.dec_rnn.lstm.weight_{source}_l{k}", 4 * prediction, prediction)
                values.tensor(f"decoder.prediction.dec_rnn.lstm.bias_{source}_l{k}", 4 * prediction)
        values.layer("joint.enc", joint, shape.d)
        values.layer("joint.pred", joint, prediction)
        values.layer("joint.joint_net.2", rows + len(shape.durations or ()), joint)
    if "ctc" in shape.heads:
        head = "ctc_decoder" if "transducer" in shape.heads else "decoder"
        values.layer(f"{head}.decoder_layers.0", rows, shape.d, 1)
    return values


def archive(folder: Path, shape: Shape, name: str = "parakeet", **replaced: Any) -> Path:
    """An archive in `folder`. replaced: `config` or `tensors` to use instead of the shape's own."""
    files = {
        f"{md5('parakeet')}_tokenizer.model": tokenizer(shape),
        "model_config.yaml": yaml.safe_dump(replaced.get("config") or config(shape), sort_keys=False).encode(),
        "model_weights.ckpt": checkpoint(dict(replaced.get("tensors") or tensors(shape))),
    }
    return write_archive(folder / f"{name}.nemo", files)


def full_archive(folder: Path, name: str) -> Path:
    """An archive of a published model's size, in `folder`, which is made. Its tensors are in memory once."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, path, weights = PUBLISHED[name][0], folder / f"{name}.nemo", folder / "model_weights.ckpt"
    torch.save(dict(tensors(shape, ModestTensors(seed=3))), weights)
    with tarfile.open(path, "w:") as file:
        file.add(weights, f"./{weights.name}")
        archives.add(file, f"./{md5('parakeet')}_tokenizer.model", tokenizer(shape))
        archives.add(file, "./model_config.yaml", yaml.safe_dump(config(shape), sort_keys=False).encode())
    weights.unlink()
    return path


if __name__ == "__main__":
    _, published, output = sys.argv
    print(full_archive(Path(output), published))
