"""mlx-audio's side of the comparison: its Canary and its `generate`, with NeMo's weights under its names.

It does one audio at a time. `blas.py` gives its wheel of MLX a fast BLAS.
"""

from pathlib import Path

import mlx.core as mx
from mlx_audio.stt.models.canary import Model, ModelConfig
from worker import NEVER, Job, Run, Stages, checkpoint, configuration, work


class FixedPrompt:
    """What `generate` asks of a tokenizer; keeps the tokens that it is given."""

    eos_id = -1

    def __init__(self) -> None:
        self.prompt: list[int] = []
        self.tokens: list[int] = []

    def build_prompt_tokens(self, **_: object) -> list[int]:
        return self.prompt

    def decode(self, tokens: list[int]) -> str:
        self.tokens = tokens
        return ""


def load(archive: Path) -> Run:
    nemo, weights = configuration(archive), checkpoint(archive)
    canary = Model(config(nemo, len(weights["log_softmax.mlp.layer0.bias"])))
    named = {name: mx.array(value.float().numpy()) for name, value in weights.items()}
    placed = {
        name: value
        for name, value in canary.sanitize(named).items()
        if not name.startswith(("preprocessor.", "decoder.position_embedding."))
    }
    # Its loader leaves this layer out, which its models do not have; its encoder has a place for it.
    placed |= {f"encoder.projection.{part}": named[f"encoder_decoder_proj.{part}"] for part in ("weight", "bias")}
    canary.load_weights(list(placed.items()))
    canary.eval()
    mx.eval(canary.parameters())
    canary._tokenizer = tokenizer = FixedPrompt()
    own_bias = canary.decoder.output_proj.bias

    def run(job: Job, stages: Stages) -> list[list[int]]:
        banned = mx.zeros(own_bias.shape, own_bias.dtype)
        banned[mx.array(job.banned)] = NEVER
        canary.decoder.output_proj.bias = own_bias + banned
        tokenizer.prompt = job.prompt
        with stages("features"):
            mels = [canary._preprocess_audio(waveform) for waveform in job.waveforms]
            mx.eval(mels)
        with stages("encode"):
            encoded = [Model._encode_audio(canary, mel) for mel in mels]
        with stages("decode"):
            rows = []
            for mel, each, tokens in zip(mels, encoded, job.tokens, strict=True):
                canary._encode_audio = lambda _, each=each: each
                canary.generate(mel, max_tokens=tokens, dtype=mx.float32)
                rows.append(tokenizer.tokens)
        return rows

    return run


def config(nemo: dict, rows: int) -> ModelConfig:
    decoder = nemo["transf_decoder"]["config_dict"]
    return ModelConfig.from_dict(
        {
            "preprocessor": nemo["preprocessor"],
            "encoder": nemo["encoder"],
            "transf_decoder": decoder,
            "vocab_size": rows,
            "enc_output_dim": decoder["hidden_size"],
        }
    )


if __name__ == "__main__":
    work(load)
