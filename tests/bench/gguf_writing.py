"""What both GGUF exports share: the encoder's names, the description of its sound, and writing the tensors."""

import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from sentencepiece import SentencePieceProcessor

Renaming = Sequence[tuple[str, str | Callable[[re.Match], str]]]

ENCODER: Renaming = [
    (r"^encoder\.layers", "enc.blocks"),
    (r"^encoder\.", "enc."),
    (r"norm_feed_forward", "norm_ff"),
    (r"feed_forward", "ff"),
    (r"norm_self_att", "norm_attn"),
    (r"(?<=\d\.)self_attn(?=\.(linear|pos))", "attn"),
    (r"pointwise_conv", "pointwise"),
    (r"depthwise_conv", "depthwise"),
    (r"batch_norm", "bn"),
]


def describe_encoder(writer: gguf.GGUFWriter, encoder: dict[str, Any], prefix: str) -> None:
    numbers = {
        "n_layers": encoder["n_layers"],
        "d_model": encoder["d_model"],
        "n_heads": encoder["n_heads"],
        "d_ff": encoder["d_model"] * encoder["ff_expansion_factor"],
        "conv_kernel": encoder["conv_kernel_size"],
        "subsampling_factor": encoder["subsampling_factor"],
        "subsampling_channels": encoder["subsampling_conv_channels"],
        "pos_emb_max_len": encoder["pos_emb_max_len"],
    }
    for name, number in numbers.items():
        writer.add_uint32(f"{prefix}.{name}", number)


def describe_sound(writer: gguf.GGUFWriter, sound: dict[str, Any]) -> None:
    rate = sound["sample_rate"]
    writer.add_string("stt.frontend.type", "mel")
    writer.add_uint32("stt.frontend.num_mels", sound["features"])
    writer.add_uint32("stt.frontend.sample_rate", rate)
    writer.add_uint32("stt.frontend.n_fft", sound["n_fft"])
    writer.add_uint32("stt.frontend.win_length", round(sound["window_size"] * rate))
    writer.add_uint32("stt.frontend.hop_length", round(sound["window_stride"] * rate))
    writer.add_string("stt.frontend.window", sound["window"])
    writer.add_string("stt.frontend.normalize", sound["normalize"])
    writer.add_string("stt.frontend.pad_mode", "constant")
    writer.add_float32("stt.frontend.dither", 0.0)
    writer.add_float32("stt.frontend.pre_emphasis", 0.97)
    writer.add_float32("stt.frontend.f_min", 0.0)
    writer.add_float32("stt.frontend.f_max", rate / 2)


def pieces_of(archive: Path, model_path: str) -> list[str]:
    """The pieces of the SentencePiece model that a configuration names, by their ids."""
    with tarfile.open(archive) as tar:
        files = {Path(member.name).name: member for member in tar}
        file = tar.extractfile(files[model_path.removeprefix("nemo:")])
        assert file is not None
        model = SentencePieceProcessor(model_proto=file.read())
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]


def write(
    writer: gguf.GGUFWriter, weights: dict[str, Any], renaming: Renaming, kind: gguf.GGMLQuantizationType
) -> None:
    """The file, with NeMo's tensors (torch) by the names that `renaming` gives them, large matrices as `kind`."""
    for name, value in weights.items():
        if name.startswith("preprocessor.") or name.endswith("num_batches_tracked"):
            continue
        array = np.ascontiguousarray(value.float().numpy())
        packed = kind != gguf.GGMLQuantizationType.F32 and is_packed(name, array)
        if packed:
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(renamed(name, renaming), array, raw_dtype=kind if packed else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_packed(name: str, weight: np.ndarray) -> bool:
    """Matrices of linear layers; not the embedding of tokens, whose copy in a Canary's head is packed."""
    return weight.ndim == 2 and name.endswith(".weight") and weight.shape[1] % 32 == 0 and "embed" not in name


def renamed(name: str, renaming: Renaming) -> str:
    for pattern, to in renaming:
        name = re.sub(pattern, to, name)
    return name
