"""An archive of a Parakeet as the GGUF that transcribe.cpp reads: run in its environment.

    python tests/bench/export_gguf_parakeet.py MODEL.nemo OUT.gguf F32|Q8_0

Of a hybrid, transcribe.cpp runs the TDT head alone. Q8_0 packs the matrices of linear layers; transcribe.cpp runs the
prediction and joint networks in float32 in any case.
"""

import sys
from pathlib import Path

import gguf
from gguf_writing import ENCODER, describe_encoder, describe_sound, pieces_of, write
from worker import checkpoint, configuration

RENAMED = [
    *ENCODER,
    (r"^decoder\.prediction\.embed", "pred.embed"),
    (r"^decoder\.prediction\.dec_rnn\.lstm\.weight_ih_l(\d)", r"pred.lstm.\1.Wx"),
    (r"^decoder\.prediction\.dec_rnn\.lstm\.weight_hh_l(\d)", r"pred.lstm.\1.Wh"),
    (r"^decoder\.prediction\.dec_rnn\.lstm\.bias_l(\d)", r"pred.lstm.\1.bias"),
    (r"^joint\.joint_net\.\d", "joint.out"),
]


def main() -> None:
    archive, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), gguf.GGMLQuantizationType[sys.argv[3]]
    nemo, weights = configuration(archive), checkpoint(archive)
    weights = {name: value for name, value in weights.items() if not name.startswith("ctc_decoder.")}
    lstm = "decoder.prediction.dec_rnn.lstm"
    layers = sum(name.startswith(f"{lstm}.weight_ih") for name in weights)
    for i in range(layers):
        # transcribe.cpp has their sum.
        weights[f"{lstm}.bias_l{i}"] = weights.pop(f"{lstm}.bias_ih_l{i}") + weights.pop(f"{lstm}.bias_hh_l{i}")
    writer = gguf.GGUFWriter(str(out), "parakeet")
    describe(writer, nemo, weights, layers, pieces_of(archive, nemo["tokenizer"]["model_path"]))
    write(writer, weights, RENAMED, kind)


def describe(writer: gguf.GGUFWriter, nemo: dict, weights: dict, layers: int, pieces: list[str]) -> None:
    encoder, durations = nemo["encoder"], nemo["decoding"]["durations"]
    writer.add_string("stt.variant", Path(sys.argv[1]).stem)
    writer.add_string("stt.parakeet.head_kind", "tdt")
    writer.add_languages(["en"])
    writer.add_string("tokenizer.ggml.model", "bpe")
    writer.add_array("tokenizer.ggml.tokens", [*pieces, "<blank>"])
    writer.add_array("tokenizer.ggml.scores", [0.0] * (len(pieces) + 1))
    # 2: unknown, 1: text, 3: control.
    writer.add_array("tokenizer.ggml.token_type", [2, *[1] * (len(pieces) - 1), 3])
    writer.add_uint32("tokenizer.ggml.unknown_token_id", 0)
    writer.add_uint32("tokenizer.ggml.blank_token_id", len(pieces))
    describe_encoder(writer, encoder, "stt.parakeet.encoder")
    writer.add_bool("stt.parakeet.encoder.use_bias", "encoder.layers.0.feed_forward1.linear1.bias" in weights)
    writer.add_bool("stt.parakeet.encoder.xscaling", encoder["xscaling"])
    rows, width = weights["decoder.prediction.embed.weight"].shape
    writer.add_uint32("stt.parakeet.predictor.hidden", width)
    writer.add_uint32("stt.parakeet.predictor.n_layers", layers)
    writer.add_uint32("stt.parakeet.predictor.vocab", rows)
    writer.add_uint32("stt.parakeet.joint.hidden", len(weights["joint.enc.bias"]))
    writer.add_uint32("stt.parakeet.joint.num_extra_outputs", len(durations))
    writer.add_string("stt.parakeet.joint.activation", nemo["joint"]["jointnet"]["activation"])
    writer.add_array("stt.parakeet.tdt.durations", list(durations))
    writer.add_uint32("stt.parakeet.tdt.max_symbols", nemo["decoding"]["greedy"]["max_symbols"])
    describe_sound(writer, nemo["preprocessor"])


if __name__ == "__main__":
    main()
