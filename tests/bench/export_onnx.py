"""NeMo's modules as ONNX files, for onnxruntime's side of the comparison: run in NeMo's environment.

    python tests/bench/export_onnx.py MODEL.nemo FOLDER

encoder.onnx: mel and lengths → states. decoder.onnx: tokens, states, mask and the memory of earlier steps → scores of
the next token and the memory; that is NeMo's own way to remember, the layers' inputs, of which each step makes keys and
values again. features.npz: the filterbank and window, and the projection between the two.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.models import EncDecMultiTaskModel
from torch import nn


class Decoder(nn.Module):
    """Tokens that come after those in the memory: one at a time, or the whole prompt with an empty memory."""

    def __init__(self, model: EncDecMultiTaskModel):
        super().__init__()
        self.embedding = model.transf_decoder.embedding
        self.decoder = model.transf_decoder.decoder
        self.head = model.log_softmax.mlp.layer0

    def forward(self, tokens, states, mask, memory):
        """tokens (B, S), states (B, T, D), mask (B, T), memory (L + 2, B, P, D) → scores (B, V), memory."""
        positions = torch.arange(tokens.shape[1]) + memory.shape[2]
        x = self.embedding.token_embedding(tokens) + self.embedding.position_embedding.pos_enc[positions]
        x = self.embedding.layer_norm(x)
        memory, _ = self.decoder(
            x, torch.ones_like(tokens).float(), states, mask, memory, return_mems=True, return_mems_as_list=False
        )
        return self.head(memory[-1, :, -1]), memory


def main() -> None:
    archive, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    model = EncDecMultiTaskModel.restore_from(str(archive), map_location="cpu").eval()
    featurizer = model.preprocessor.featurizer
    np.savez(
        folder / "features.npz",
        window=featurizer.window.numpy(),
        fb=featurizer.fb[0].numpy(),
        weight=model.encoder_decoder_proj.weight.detach().numpy(),
        bias=model.encoder_decoder_proj.bias.detach().numpy(),
    )
    model.encoder.export(str(folder / "encoder.onnx"), check_trace=False)
    decoder = Decoder(model).eval()
    config = model.cfg.transf_decoder.config_dict
    memory = torch.zeros(config.num_layers + 2, 2, 7, config.hidden_size)
    with torch.inference_mode():
        torch.onnx.export(
            decoder,
            (torch.tensor([[5], [6]]), torch.randn(2, 30, config.hidden_size), torch.ones(2, 30), memory),
            str(folder / "decoder.onnx"),
            input_names=["tokens", "states", "mask", "memory"],
            output_names=["scores", "new_memory"],
            dynamic_axes={
                "tokens": {0: "B", 1: "S"},
                "states": {0: "B", 1: "T"},
                "mask": {0: "B", 1: "T"},
                "memory": {1: "B", 2: "P"},
            },
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
