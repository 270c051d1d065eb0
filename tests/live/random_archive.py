"""A `.nemo` archive of a flash model in a published shape, with random weights and the toy's tokenizer."""

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
import yaml

from tests.archives import RandomTensors, checkpoint, decoder_tensors, encoder_tensors, write_archive
from tests.live.looks import SHAPES, Shape

TOY = Path(__file__).parents[2] / "convert" / "toy" / "toy.nemo"
# Not canary-1b-v2: its words are timed by an aligner, which is not made here.
FLASH = [name for name in SHAPES if name.endswith("-flash")]
# The flash models are alike in these.
CHANNELS, HEADS, LONGEST = 256, 8, 1024


class Drawn(RandomTensors):
    """Random tensors that leave what goes through them about as large as it was, as trained ones do."""

    def tensor(self, name: str, *shape: int) -> None:
        values = torch.randn(shape, generator=self.generator)
        if name.endswith(("running_var", "fb")):
            self[name] = values.abs() + 0.1
        elif "norm" in name and name.endswith("weight"):
            self[name] = 1 + 0.1 * values
        else:
            self[name] = values * (prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1)


def members(shape: Shape) -> dict[str, bytes]:
    """The archive's files by name."""
    values = Drawn(seed=0)
    encoder_tensors(values, shape.width, shape.layers, CHANNELS, heads=HEADS)
    decoder_tensors(values, shape.decoder_width, shape.decoder_layers, shape.vocabulary, shape.width, LONGEST)
    with tarfile.open(TOY) as toy:
        files = {member.name: toy.extractfile(member) for member in toy if member.name.endswith((".yaml", ".model"))}
        contents = {name: file.read() for name, file in files.items() if file}
    config = yaml.safe_load(contents["./model_config.yaml"])
    config["encoder"] |= {
        "n_layers": shape.layers,
        "d_model": shape.width,
        "n_heads": HEADS,
        "subsampling_conv_channels": CHANNELS,
    }
    config["transf_decoder"]["config_dict"] |= {
        "max_sequence_length": LONGEST,
        "hidden_size": shape.decoder_width,
        "inner_size": 4 * shape.decoder_width,
        "num_layers": shape.decoder_layers,
        "num_attention_heads": HEADS,
    }
    config["head"]["num_classes"] = shape.vocabulary
    contents["./model_config.yaml"] = yaml.safe_dump(config, sort_keys=False).encode()
    contents["./model_weights.ckpt"] = checkpoint(dict(values))
    return contents


@contextmanager
def random_archive(shape: str) -> Iterator[Path]:
    """The path of an archive of this published shape. It stands in a folder of its own, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_archive(Path(folder, f"{shape}.nemo"), members(SHAPES[shape]), prefix="")
