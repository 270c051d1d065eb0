"""transformers' side of the comparison: its Canary and its `generate`, with NeMo's weights under its names.

The option is the type it computes in: "float32" or "bfloat16". Its Canary has no projection between an encoder and a
decoder of different widths, as canary-180m-flash has one; that is one linear layer, put between them here.
"""

import re
from pathlib import Path

import torch
from transformers import CanaryConfig, CanaryForConditionalGeneration, ParakeetFeatureExtractor
from worker import NEVER, Job, Run, Stages, checkpoint, configuration, work

ENCODER = [
    (r"encoder\.pre_encode\.conv", "model.encoder.subsampling.layers"),
    (r"encoder\.pre_encode\.out", "model.encoder.subsampling.linear"),
    (r"encoder\.layers", "model.encoder.layers"),
    (r"linear_pos", "relative_k_proj"),
    (r"self_attn\.linear_(q|k|v)\.", r"self_attn.\1_proj."),
    (r"self_attn\.linear_out", "self_attn.o_proj"),
    (r"pos_bias_", "bias_"),
    (r"batch_norm", "norm"),
]
DECODER = [
    (r"transf_decoder\._embedding\.token_embedding", "model.decoder.embed_tokens"),
    (r"transf_decoder\._embedding\.layer_norm", "model.decoder.embedding_layernorm"),
    (r"transf_decoder\._decoder\.final_layer_norm", "model.decoder.norm"),
    (r"transf_decoder\._decoder\.layers", "model.decoder.layers"),
    (r"first_sub_layer", "self_attn"),
    (r"second_sub_layer", "encoder_attn"),
    (r"(query|key|value)_net", lambda m: f"{m[1][0]}_proj"),
    (r"out_projection", "o_proj"),
    (r"third_sub_layer\.dense_in", "mlp.fc1"),
    (r"third_sub_layer\.dense_out", "mlp.fc2"),
    (r"layer_norm_1", "input_layernorm"),
    (r"layer_norm_2", "post_attention_layernorm"),
    (r"layer_norm_3", "final_layernorm"),
    (r"log_softmax\.mlp\.layer0", "proj_out"),
]
POSITIONS = "transf_decoder._embedding.position_embedding.pos_enc"


def load(archive: Path, dtype: str) -> Run:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nemo, weights = configuration(archive), checkpoint(archive)
    model = CanaryForConditionalGeneration(config(nemo, weights)).eval().to(device)
    positions = weights.pop(POSITIONS)
    projection = torch.nn.Linear(1, 1)
    projection.weight.data = weights.pop("encoder_decoder_proj.weight")
    projection.bias.data = weights.pop("encoder_decoder_proj.bias")
    named = {renamed(name): value for name, value in weights.items() if not name.startswith("preprocessor.")}
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    # NeMo's sinusoids; the module divides by the root of the width, which NeMo's table already is.
    table = model.model.decoder.pos_emb
    table.positional_embedding = positions.to(device) * positions.shape[1] ** 0.5
    model, projection = (module.to(device, getattr(torch, dtype)) for module in (model, projection))
    extractor = ParakeetFeatureExtractor(feature_size=nemo["preprocessor"]["features"])
    own_bias = model.proj_out.bias.detach().clone()

    def run(job: Job, stages: Stages) -> list[list[int]]:
        bias = own_bias.clone()
        bias[job.banned] = NEVER
        model.proj_out.bias.data = bias
        prompts = torch.tensor([job.prompt] * len(job.waveforms), device=device)
        with torch.inference_mode():
            with stages("features"):
                features = extractor(job.waveforms, sampling_rate=16000, return_tensors="pt")
                features = features.to(device, projection.weight.dtype)
            with stages("encode"):
                encoded = model.model.encoder(features.input_features, attention_mask=features.attention_mask)
                encoded.last_hidden_state = projection(encoded.last_hidden_state)
            with stages("decode"):
                tokens = model.generate(
                    encoder_outputs=encoded,
                    decoder_input_ids=prompts,
                    max_new_tokens=max(job.tokens),
                    min_new_tokens=max(job.tokens),
                    do_sample=False,
                )
        return tokens[:, len(job.prompt) :].tolist()

    return run


def config(nemo: dict, weights: dict) -> CanaryConfig:
    encoder, decoder = nemo["encoder"], nemo["transf_decoder"]["config_dict"]
    rows = len(weights["log_softmax.mlp.layer0.bias"])
    return CanaryConfig(
        vocab_size=rows,
        encoder_config={
            "model_type": "parakeet_encoder",
            "hidden_size": encoder["d_model"],
            "num_hidden_layers": encoder["n_layers"],
            "num_attention_heads": encoder["n_heads"],
            "intermediate_size": encoder["d_model"] * encoder["ff_expansion_factor"],
            "num_mel_bins": encoder["feat_in"],
            "subsampling_conv_channels": encoder["subsampling_conv_channels"],
            "conv_kernel_size": encoder["conv_kernel_size"],
            "scale_input": encoder["xscaling"],
        },
        decoder_config={
            "vocab_size": rows,
            "hidden_size": decoder["hidden_size"],
            "intermediate_size": decoder["inner_size"],
            "num_hidden_layers": decoder["num_layers"],
            "num_attention_heads": decoder["num_attention_heads"],
            "num_key_value_heads": decoder["num_attention_heads"],
            "head_dim": decoder["hidden_size"] // decoder["num_attention_heads"],
            "max_position_embeddings": decoder["max_sequence_length"],
        },
    )


def renamed(name: str) -> str:
    for pattern, to in ENCODER if name.startswith("encoder.") else DECODER:
        name = re.sub(pattern, to, name)
    return name


if __name__ == "__main__":
    work(load)
