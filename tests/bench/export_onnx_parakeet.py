"""A Parakeet as onnx-asr takes it: run in NeMo's environment.

    python tests/bench/export_onnx_parakeet.py MODEL.nemo FOLDER

NeMo's own export of the encoder and of the prediction and joint networks as one, a TDT's if the model has one.
"""

import json
import sys
from pathlib import Path

from nemo.collections.asr.models import ASRModel


def main() -> None:
    archive, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    model = ASRModel.restore_from(str(archive), map_location="cpu").eval()
    model.export(str(folder / "model.onnx"), check_trace=False)
    pieces = [*model.tokenizer.ids_to_tokens(list(range(model.tokenizer.vocab_size))), "<blk>"]
    vocabulary = "".join(f"{piece} {i}\n" for i, piece in enumerate(pieces))
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    config = {
        "model_type": "nemo-conformer-tdt",
        "features_size": model.cfg.preprocessor.features,
        "subsampling_factor": model.cfg.encoder.subsampling_factor,
        "max_tokens_per_step": model.cfg.decoding.greedy.max_symbols,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
