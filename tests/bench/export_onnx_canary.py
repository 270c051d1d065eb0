"""A Canary's modules as ONNX files, for onnxruntime's side of the comparison: run in NeMo's environment.

    python tests/bench/export_onnx_canary.py MODEL.nemo FOLDER

encoder.onnx is NeMo's own export: mel and lengths → vectors. Two decoders write the same tokens. decoder.onnx is what
NeMo exports: its memory are the layers' inputs, of which each step makes all keys and values again. cached.onnx has a
KV cache: cross.onnx makes keys and values of the encoder's vectors once, and each step adds one key and value a layer.
features.npz: the filterbank and window, and the projection between encoder and decoder.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.models import EncDecMultiTaskModel
from torch import nn

MASKED = -1e4


class Decoder(nn.Module):
    """NeMo's: tokens that come after those in the memory, one at a time, or the whole prompt with an empty memory."""

    def __init__(self, model: EncDecMultiTaskModel):
        super().__init__()
        self.embedding = model.transf_decoder.embedding
        self.decoder = model.transf_decoder.decoder
        self.head = model.log_softmax.mlp.layer0

    def forward(self, tokens, states, mask, memory):
        """tokens (B, S), states (B, T, D), mask (B, T), memory (L + 2, B, P, D) → scores (B, V), memory."""
        x = embedded(self.embedding, tokens, memory.shape[2])
        memory, _ = self.decoder(
            x, torch.ones_like(tokens).float(), states, mask, memory, return_mems=True, return_mems_as_list=False
        )
        return self.head(memory[-1, :, -1]), memory


class Cross(nn.Module):
    """Encoder vectors (B, D, T) → keys and values (B, heads, T, d) of each layer's cross-attention, by one product."""

    def __init__(self, model: EncDecMultiTaskModel):
        super().__init__()
        layers = [layer.second_sub_layer for layer in model.transf_decoder.decoder.layers]
        self.projection = model.encoder_decoder_proj
        self.product = joined([net for layer in layers for net in (layer.key_net, layer.value_net)])
        self.heads, self.parts = layers[0].num_attention_heads, 2 * len(layers)

    def forward(self, vectors):
        parts = self.product(self.projection(vectors.transpose(1, 2))).chunk(self.parts, dim=-1)
        return tuple(split(part, self.heads) for part in parts)


class CachedDecoder(nn.Module):
    """The same decoder with a KV cache, of pre-norm layers as all Canaries have."""

    def __init__(self, model: EncDecMultiTaskModel):
        super().__init__()
        self.embedding = model.transf_decoder.embedding
        self.decoder = model.transf_decoder.decoder
        self.head = model.log_softmax.mlp.layer0
        own = [layer.first_sub_layer for layer in self.decoder.layers]
        self.products = nn.ModuleList(joined([a.query_net, a.key_net, a.value_net]) for a in own)
        self.heads, self.scale = own[0].num_attention_heads, own[0].attn_head_size ** -0.5

    def forward(self, tokens, mask, *memory):
        """tokens (B, S), mask (B, T), and of each layer past keys and values (B, heads, P, d), then cross-attention's
        (B, heads, T, d) → scores (B, V), and of each layer keys and values (B, heads, P + S, d)."""
        past, steps = memory[0].shape[2], tokens.shape[1]
        x = embedded(self.embedding, tokens, past)
        ahead = torch.arange(past + steps)[None] > (torch.arange(steps) + past)[:, None]
        unheard = (1 - mask)[:, None, None] * MASKED
        present = []
        for layer, product, *kept in zip(
            self.decoder.layers, self.products, *(memory[i::4] for i in range(4)), strict=True
        ):
            query, key, value = (split(part, self.heads) for part in product(layer.layer_norm_1(x)).chunk(3, dim=-1))
            keys, values = torch.cat([kept[0], key], dim=2), torch.cat([kept[1], value], dim=2)
            present += [keys, values]
            heard = self.attended(query, keys, values, ahead * MASKED)
            x = x + layer.first_sub_layer.out_projection(heard)
            query = split(layer.second_sub_layer.query_net(layer.layer_norm_2(x)), self.heads)
            x = x + layer.second_sub_layer.out_projection(self.attended(query, kept[2], kept[3], unheard))
            x = x + layer.third_sub_layer(layer.layer_norm_3(x))
        return self.head(self.decoder.final_layer_norm(x[:, -1])), *present

    def attended(self, query, keys, values, hidden):
        """(B, heads, S, d), twice (B, heads, N, d), and what is added to the scores → (B, S, D)."""
        weights = torch.softmax((query * self.scale) @ keys.transpose(-1, -2) + hidden, dim=-1)
        return (weights @ values).transpose(1, 2).flatten(2)


def embedded(embedding, tokens: torch.Tensor, past: int) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]) + past
    return embedding.layer_norm(embedding.token_embedding(tokens) + embedding.position_embedding.pos_enc[positions])


def joined(nets: list[nn.Linear]) -> nn.Linear:
    """Several layers of the same input as one."""
    joint = nn.Linear(nets[0].in_features, sum(net.out_features for net in nets))
    joint.weight.data = torch.cat([net.weight.data for net in nets])
    joint.bias.data = torch.cat([net.bias.data for net in nets])
    return joint


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, D) → (B, heads, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def main() -> None:
    archive, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    model = EncDecMultiTaskModel.restore_from(str(archive), map_location="cpu").eval()
    featurizer, projection = model.preprocessor.featurizer, model.encoder_decoder_proj
    np.savez(
        folder / "features.npz",
        window=featurizer.window.numpy(),
        fb=featurizer.fb[0].numpy(),
        weight=projection.weight.detach().numpy(),
        bias=projection.bias.detach().numpy(),
    )
    model.encoder.export(str(folder / "encoder.onnx"), check_trace=False)
    config = model.cfg.transf_decoder.config_dict
    width, layers, heads = config.hidden_size, config.num_layers, config.num_attention_heads
    tokens, states, mask = torch.tensor([[5, 7], [6, 8]]), torch.randn(2, 30, width), torch.ones(2, 30)
    export(
        Decoder(model),
        {"tokens": tokens[:, :1], "states": states, "mask": mask, "memory": torch.zeros(layers + 2, 2, 7, width)},
        ["scores", "new_memory"],
        {"tokens": "BS", "states": "BT", "mask": "BT", "memory": "-BP", "scores": "B", "new_memory": "-BN"},
        folder / "decoder.onnx",
    )
    cross = [f"cross_{part}_{i}" for i in range(layers) for part in ("keys", "values")]
    vectors = {"vectors": torch.randn(2, model.cfg.encoder.d_model, 30)}
    axes = {"vectors": "B-T"} | dict.fromkeys(cross, "B-T")
    export(Cross(model), vectors, cross, axes, folder / "cross.onnx")
    memory = {}
    for i in range(layers):
        memory |= {f"{part}_{i}": torch.randn(2, heads, 7, width // heads) for part in ("keys", "values")}
        memory |= {f"cross_{part}_{i}": torch.randn(2, heads, 30, width // heads) for part in ("keys", "values")}
    new = [f"new_{name}" for name in memory if not name.startswith("cross")]
    axes = {name: "B-T" if name.startswith("cross") else "B-P" for name in memory} | dict.fromkeys(new, "B-N")
    axes |= {"tokens": "BS", "mask": "BT", "scores": "B"}
    inputs = {"tokens": tokens, "mask": mask, **memory}
    export(CachedDecoder(model), inputs, ["scores", *new], axes, folder / "cached.onnx")


def export(module: nn.Module, inputs: dict, outputs: list[str], axes: dict[str, str], path: Path) -> None:
    """axes: of inputs and outputs, a letter for each leading axis that varies, "-" for one that does not."""
    with torch.inference_mode():
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={
                name: {i: letter for i, letter in enumerate(letters) if letter != "-"} for name, letters in axes.items()
            },
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
