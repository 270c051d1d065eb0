"""An archive of the canary2 family as the GGUF that transcribe.cpp reads: run in its environment.

    python tests/bench/export_gguf_canary.py MODEL.nemo OUT.gguf F32|Q8_0

Tokens that end a text can never win: their share of the head's bias is put out of reach here, since transcribe.cpp
has no way to forbid a token. It returns a Canary's text without tokens, so each piece is written as its id in
brackets. Q8_0 packs the matrices of linear layers.
"""

import re
import sys
from pathlib import Path

import gguf
from gguf_writing import ENCODER, describe_encoder, describe_sound, pieces_of, write
from worker import NEVER, checkpoint, configuration

RENAMED = [
    *ENCODER,
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
# The one special token that transcribe.cpp looks up by its text.
BY_TEXT = "<|emo:undefined|>"


def main() -> None:
    archive, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), gguf.GGMLQuantizationType[sys.argv[3]]
    nemo, weights = configuration(archive), checkpoint(archive)
    pieces = [p for each in nemo["tokenizer"]["langs"].values() for p in pieces_of(archive, each["model_path"])]
    # The head's rows are a multiple of eight.
    pieces += [f"<unused{i}>" for i in range(len(weights["log_softmax.mlp.layer0.bias"]) - len(pieces))]
    weights["log_softmax.mlp.layer0.bias"][[pieces.index("<|endoftext|>"), pieces.index("<pad>")]] = NEVER
    writer = gguf.GGUFWriter(str(out), "canary")
    describe(writer, nemo, pieces)
    write(writer, weights, RENAMED, kind)


def describe(writer: gguf.GGUFWriter, nemo: dict, pieces: list[str]) -> None:
    encoder, decoder = nemo["encoder"], nemo["transf_decoder"]["config_dict"]
    languages = [name for name in nemo["tokenizer"]["langs"] if name != "spl_tokens"]
    writer.add_string("stt.variant", "canary-180m-flash")
    writer.add_languages(languages)
    writer.add_string("tokenizer.ggml.model", "unigram")
    writer.add_array("tokenizer.ggml.tokens", [p if p == BY_TEXT else f"[{i}]" for i, p in enumerate(pieces)])
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
    describe_encoder(writer, encoder, "stt.canary.encoder")
    numbers = {
        "n_layers": decoder["num_layers"],
        "d_model": decoder["hidden_size"],
        "n_heads": decoder["num_attention_heads"],
        "d_ff": decoder["inner_size"],
        "max_position": decoder["max_sequence_length"],
        "vocab_size": len(pieces),
    }
    for name, number in numbers.items():
        writer.add_uint32(f"stt.canary.decoder.{name}", number)
    writer.add_bool("stt.canary.encoder.use_bias", True)
    writer.add_bool("stt.canary.decoder.encoder_decoder_proj", encoder["d_model"] != decoder["hidden_size"])
    writer.add_string("stt.canary.decoder.activation", decoder["hidden_act"])
    describe_sound(writer, nemo["preprocessor"])


if __name__ == "__main__":
    main()
