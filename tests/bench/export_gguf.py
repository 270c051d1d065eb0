"""An archive of the canary2 family as the GGUF that transcribe.cpp reads: run in its environment.

    python tests/bench/export_gguf.py MODEL.nemo OUT.gguf F32|Q8_0

Tokens that end a text can never win: their share of the head's bias is put out of reach here, since transcribe.cpp
has no way to forbid a token. Q8_0 packs the matrices of linear layers.
"""

import re
import sys
import tarfile
from pathlib import Path

import gguf
import numpy as np
from sentencepiece import SentencePieceProcessor
from worker import NEVER, checkpoint, configuration

RENAMED = [
    (r"^encoder\.layers", "enc.blocks"),
    (r"^encoder\.", "enc."),
    (r"norm_feed_forward", "norm_ff"),
    (r"feed_forward", "ff"),
    (r"norm_self_att", "norm_attn"),
    (r"(?<=\d\.)self_attn(?=\.(linear|pos))", "attn"),
    (r"pointwise_conv", "pointwise"),
    (r"depthwise_conv", "depthwise"),
    (r"batch_norm", "bn"),
    (r"^encoder_decoder_proj", "enc.proj"),
    (r"^transf_decoder\._embedding\.token_embedding", "dec.embed.token"),
    (r"^transf_decoder\._embedding\.position_embedding", "dec.embed"),
    (r"^transf_decoder\._embedding\.layer_norm", "dec.embed.norm"),
    (r"^transf_decoder\._decoder\.layers", "dec.layer"),
    (r"^transf_decoder\._decoder\.final_layer_norm", "dec.norm"),
    (r"layer_norm_", "norm"),
    (r"first_sub_layer", "self_attn"),
    (r"second_sub_layer", "cross_attn"),
    (r"(query|key|value)_net", lambda m: m[1][0]),
    (r"out_projection", "o"),
    (r"third_sub_layer\.dense_in", "ffn.up"),
    (r"third_sub_layer\.dense_out", "ffn.down"),
    (r"^log_softmax\.mlp\.layer0", "dec.head"),
]
SPECIAL = ("startofcontext", "startoftranscript", "endoftext", "nospeech", "pnc", "nopnc", "itn", "noitn")
SPECIAL += ("timestamp", "notimestamp", "diarize", "nodiarize")


def main() -> None:
    archive, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), gguf.GGMLQuantizationType[sys.argv[3]]
    nemo, weights = configuration(archive), checkpoint(archive)
    pieces = vocabulary(archive, nemo)
    weights["log_softmax.mlp.layer0.bias"][[pieces.index("<|endoftext|>"), pieces.index("<pad>")]] = NEVER
    writer = gguf.GGUFWriter(str(out), "canary")
    describe(writer, nemo, pieces)
    for name, value in weights.items():
        if name.startswith("preprocessor.") or name.endswith("num_batches_tracked"):
            continue
        array = np.ascontiguousarray(value.float().numpy())
        packed = kind != gguf.GGMLQuantizationType.F32 and is_packed(name, array)
        if packed:
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(renamed(name), array, raw_dtype=kind if packed else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_packed(name: str, weight: np.ndarray) -> bool:
    """Matrices but for the embedding, whose copy in the head is packed."""
    return weight.ndim == 2 and name.endswith(".weight") and weight.shape[1] % 32 == 0 and "embedding" not in name


def describe(writer: gguf.GGUFWriter, nemo: dict, pieces: list[str]) -> None:
    encoder, decoder, sound = nemo["encoder"], nemo["transf_decoder"]["config_dict"], nemo["preprocessor"]
    languages = [name for name in nemo["tokenizer"]["langs"] if name != "spl_tokens"]
    writer.add_string("stt.variant", "canary-180m-flash")
    writer.add_languages(languages)
    writer.add_string("tokenizer.ggml.model", "unigram")
    writer.add_array("tokenizer.ggml.tokens", pieces)
    writer.add_array("tokenizer.ggml.scores", [0.0] * len(pieces))
    # 2: unknown, 3: control, 1: text.
    types = [2 if i == 0 else 3 if re.fullmatch(r"<.*>", piece) else 1 for i, piece in enumerate(pieces)]
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_uint32("tokenizer.ggml.eos_token_id", pieces.index("<|endoftext|>"))
    writer.add_array("stt.canary.tokenizer.lang_codes", list(nemo["tokenizer"]["langs"]))
    writer.add_string("stt.canary.tokenizer.prompt_format", nemo["prompt_format"])
    for name in SPECIAL:
        writer.add_uint32(f"stt.canary.special.{name}_id", pieces.index(f"<|{name}|>"))
    writer.add_uint32("stt.canary.special.pad_id", pieces.index("<pad>"))
    for language in languages:
        writer.add_uint32(f"stt.canary.special.lang.{language}_id", pieces.index(f"<|{language}|>"))
    numbers = {
        "encoder.n_layers": encoder["n_layers"],
        "encoder.d_model": encoder["d_model"],
        "encoder.n_heads": encoder["n_heads"],
        "encoder.d_ff": encoder["d_model"] * encoder["ff_expansion_factor"],
        "encoder.conv_kernel": encoder["conv_kernel_size"],
        "encoder.subsampling_factor": encoder["subsampling_factor"],
        "encoder.subsampling_channels": encoder["subsampling_conv_channels"],
        "encoder.pos_emb_max_len": encoder["pos_emb_max_len"],
        "decoder.n_layers": decoder["num_layers"],
        "decoder.d_model": decoder["hidden_size"],
        "decoder.n_heads": decoder["num_attention_heads"],
        "decoder.d_ff": decoder["inner_size"],
        "decoder.max_position": decoder["max_sequence_length"],
        "decoder.vocab_size": len(pieces),
    }
    for name, number in numbers.items():
        writer.add_uint32(f"stt.canary.{name}", number)
    writer.add_bool("stt.canary.encoder.use_bias", True)
    writer.add_bool("stt.canary.decoder.encoder_decoder_proj", encoder["d_model"] != decoder["hidden_size"])
    writer.add_string("stt.canary.decoder.activation", decoder["hidden_act"])
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


def vocabulary(archive: Path, nemo: dict) -> list[str]:
    """The pieces of all tokenizers, one after the other, as their ids are."""
    pieces = []
    with tarfile.open(archive) as tar:
        files = {Path(member.name).name: member for member in tar}
        for tokenizer in nemo["tokenizer"]["langs"].values():
            file = tar.extractfile(files[tokenizer["model_path"].removeprefix("nemo:")])
            assert file is not None
            model = SentencePieceProcessor(model_proto=file.read())
            pieces += [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return pieces


def renamed(name: str) -> str:
    for pattern, to in RENAMED:
        name = re.sub(pattern, to, name)
    return name


if __name__ == "__main__":
    main()
