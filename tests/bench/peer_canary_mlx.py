"""canary-mlx's side of the comparison: its Canary and its greedy search, with NeMo's weights under its names.

It does one audio at a time, and has no projection between an encoder and a decoder of different widths: that is one
linear layer, put between them here. Its features are its own, and not quite NeMo's, so its tokens are others.
`blas.py` gives its wheel of MLX a fast BLAS.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import canary_mlx.model
import mlx.core as mx
from canary_mlx.audio import compute_features
from dacite import from_dict
from worker import NEVER, Job, Run, Stages, checkpoint, configuration, work

RENAMED = [
    (r"^transf_decoder\._embedding\.layer_norm", "transf_decoder.embedding_layer_norm"),
    (r"^transf_decoder\._(embedding|decoder)\.", "transf_decoder."),
    (r"(query|key|value)_net", lambda m: f"linear_{m[1][0]}"),
    (r"out_projection", "linear_out"),
    (r"third_sub_layer\.dense_in", "third_sub_layer.linear1"),
    (r"third_sub_layer\.dense_out", "third_sub_layer.linear2"),
    (r"^log_softmax\.mlp\.layer0", "head.classifier"),
]
# What it computes itself.
OWN = ("preprocessor.", "transf_decoder._embedding.position_embedding.")


def load(archive: Path) -> Run:
    nemo, weights = configuration(archive), checkpoint(archive)
    projection = [mx.array(weights.pop(f"encoder_decoder_proj.{part}").numpy()) for part in ("weight", "bias")]
    # Its tokenizer wants a file; all that is asked of it here is what ends a text.
    canary_mlx.model.CanaryTokenizer = SimpleNamespace(from_file=lambda _: SimpleNamespace(eos_id=-1))
    canary = canary_mlx.model.Canary(config(nemo, len(weights["log_softmax.mlp.layer0.bias"])))
    named = [(renamed(name), placed(value.float())) for name, value in weights.items() if not name.startswith(OWN)]
    canary.load_weights([each for each in named if not each[0].endswith("num_batches_tracked")])
    canary.eval()
    mx.eval(canary.parameters())
    own_bias = canary.head.classifier.bias

    def run(job: Job, stages: Stages) -> list[list[int]]:
        banned = mx.zeros(own_bias.shape, own_bias.dtype)
        banned[mx.array(job.banned)] = NEVER
        canary.head.classifier.bias = own_bias + banned
        with stages("features"):
            mels = [compute_features(mx.array(waveform), canary.audio_config) for waveform in job.waveforms]
            mx.eval(mels)
        with stages("encode"):
            encoded = []
            for mel in mels:
                vectors, lengths = canary.encoder(mel)
                encoded.append((vectors @ projection[0].T + projection[1], lengths))
                mx.eval(encoded[-1])
        with stages("decode"):
            rows = []
            for (vectors, lengths), tokens in zip(encoded, job.tokens, strict=True):
                search = canary_mlx.model.DecodingConfig("greedy", max_length=len(job.prompt) + tokens)
                rows += canary._decode(vectors, [job.prompt], lengths, config=search)
        return rows

    return run


def config(nemo: dict, rows: int) -> canary_mlx.model.CanaryConfig:
    decoder = nemo["transf_decoder"]["config_dict"]
    return from_dict(
        canary_mlx.model.CanaryConfig,
        {
            "preprocessor": {**nemo["preprocessor"], "window": "hanning"},
            "encoder": {**nemo["encoder"], "use_bias": nemo["encoder"].get("use_bias", True)},
            "transf_decoder": {
                "pre_ln_final_layer_norm": True,
                "learn_positional_encodings": False,
                **decoder,
                "vocab_size": rows,
            },
            "head": {"num_layers": 1, "hidden_size": decoder["hidden_size"], "num_classes": rows},
            "prompt_format": nemo["prompt_format"],
            "tokenizer": {"type": "sentencepiece"},
        },
    )


def renamed(name: str) -> str:
    for pattern, to in RENAMED:
        name = re.sub(pattern, to, name)
    return name


def placed(value) -> mx.array:
    """A convolution's weights with the channels last, as MLX has them."""
    array = value.numpy()
    return mx.array(
        array.swapaxes(1, 2) if array.ndim == 3 else array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    )


if __name__ == "__main__":
    work(load)
