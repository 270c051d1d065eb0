"""What the builders of small archives share: made-up sentences, tokenizers, NeMo's configurations, lively weights.

Random weights that are left alone repeat one token for ever. Here they are made loud enough that what comes out depends
on the sound and the history, and every norm, bias and running statistic is away from its neutral value, so that nothing
left out goes unseen.
"""

import argparse
import gzip
import json
import random
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model
from sentencepiece import sentencepiece_model_pb2


@dataclass(frozen=True)
class EncoderShape:
    """The encoder of an archive, and the seed of its weights."""

    features: int = 128
    encoder_layers: int = 2
    d_model: int = 48
    encoder_heads: int = 4
    conv_channels: int = 12
    conv_kernel: int = 9
    use_bias: bool = True
    xscaling: bool = False
    gzipped: bool = True
    seed: int = 0


# Pieces besides the special ones that a tokenizer can learn from `sentences`.
LEARNABLE = 256

_ALPHABETS = {
    "en": ("bcdfghjklmnprstvw", "aeiou"),
    "de": ("bcdfghjklmnprstwz", "aeiouäöü"),
    "es": ("bcdfghjlmnñprstv", "aeiouáéí"),
    "fr": ("bcdfghjlmnprstv", "aeiouéèê"),
    "bg": ("бвгджзклмнпрст", "аеиоу"),
    "uk": ("бвгджзклмнпрст", "аеиоуїє"),
}


def sentences(language: str, count: int, seed: int = 0) -> list[str]:
    """Made-up sentences with the language's letters."""
    rng = random.Random(f"{language} {seed}")
    consonants, vowels = _ALPHABETS[language]

    def word() -> str:
        return "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.randint(1, 3)))

    words = [word() for _ in range(300)]
    lines = (" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(count))
    return [line.capitalize() + rng.choice([".", "?", "!", ","]) for line in lines]


def train_tokenizer(
    folder: Path, size: int, lines: list[str], special: list[str] | None = None, **options: Any
) -> None:
    """A SentencePiece model of `size` pieces in `folder`. options: of NeMo's create_spt_model.

    Pieces that made-up sentences are too few to teach have made-up names.
    """
    folder.mkdir(parents=True)
    text = folder / "text.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    options |= {"output_dir": str(folder), "user_defined_symbols": special}
    learned = min(size, LEARNABLE + len(special or []))
    create_spt_model(str(text), learned, -1, False, tokenizer_type="bpe", **options)
    if size > learned:
        path = folder / "tokenizer.model"
        model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
        for i in range(size - learned):
            model.pieces.add(piece=f"▁x{i}", score=-1000.0 - i)
        path.write_bytes(model.SerializeToString())


def drop_normalisation_table(path: Path) -> None:
    """Leave out the table of Unicode normalisation, most of a small model's bytes."""
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.precompiled_charsmap = b""
    path.write_bytes(model.SerializeToString())


def preprocessor_config(shape: EncoderShape) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16000,
        "normalize": "per_feature",
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "features": shape.features,
        "n_fft": 512,
        "log": True,
        "frame_splicing": 1,
        "dither": 1e-5,
        "pad_to": 0,
        "pad_value": 0.0,
    }


def augmentation_config() -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
        "freq_masks": 2,
        "time_masks": 10,
        "freq_width": 27,
        "time_width": 0.05,
    }


def encoder_config(shape: EncoderShape) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": shape.features,
        "feat_out": -1,
        "n_layers": shape.encoder_layers,
        "d_model": shape.d_model,
        "use_bias": shape.use_bias,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": shape.conv_channels,
        "causal_downsampling": False,
        "reduction": None,
        "reduction_position": None,
        "reduction_factor": 1,
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "n_heads": shape.encoder_heads,
        "att_context_size": [-1, -1],
        "xscaling": shape.xscaling,
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": shape.conv_kernel,
        "conv_norm_type": "batch_norm",
        "conv_context_size": None,
        "dropout": 0.1,
        "dropout_pre_encoder": 0.1,
        "dropout_emb": 0.0,
        "dropout_att": 0.1,
    }


def make_lively(
    model: torch.nn.Module, seed: int, gains: dict[str, float], embeddings: Iterable[tuple[str, float]]
) -> None:
    """Random weights. gains: standard deviations times the square root of the inputs; embeddings: standard deviations.

    The first name that a parameter's contains counts.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "pos_bias" in name:
                parameter.add_(0.1 * noise(parameter))
                continue
            scale = next((scale for part, scale in embeddings if part in name), None)
            if scale is None:
                gain = next(gain for part, gain in gains.items() if part in name)
                scale = gain / parameter[0].numel() ** 0.5
            # Matrices in 8 bits of mantissa: half of their bytes are zero, and the archive half the size.
            parameter.copy_((scale * noise(parameter)).bfloat16().float())
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.2 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))


def replace_weights(path: Path, model: torch.nn.Module, gzipped: bool) -> None:
    """Put `model`'s weights into the archive at `path`, leaving its other members as NeMo wrote them."""
    folder = path.with_suffix(".unpacked")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    torch.save(model.state_dict(), folder / "model_weights.ckpt")
    plain = path.with_suffix(".tar")
    with tarfile.open(plain, "w:") as archive:
        archive.add(folder, arcname="./")
    if gzipped:
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        plain.unlink()
    else:
        plain.replace(path)
    shutil.rmtree(folder)


def add_overrides(parser: argparse.ArgumentParser, shape: type) -> None:
    """An option for each number and each choice of a shape."""
    for field in _overridable(shape):
        kind: Any = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type}
        parser.add_argument("--" + field.name.replace("_", "-"), default=None, **kind)


def chosen_overrides(arguments: argparse.Namespace, shape: type) -> dict[str, Any]:
    """What was given of `add_overrides`."""
    values = {field.name: getattr(arguments, field.name) for field in _overridable(shape)}
    return {name: value for name, value in values.items() if value is not None}


def _overridable(shape: type) -> list[Field]:
    return [field for field in fields(shape) if field.type in (int, float, bool)]


def write_goldens(archive: Path, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """NAME.json and NAME.npz beside NAME.nemo."""
    lines = ",\n".join(f" {json.dumps(key)}: {_one_per_line(value)}" for key, value in values.items())
    archive.with_suffix(".json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    np.savez_compressed(archive.with_suffix(".npz"), **arrays)


def _one_per_line(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
