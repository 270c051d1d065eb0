"""The untrained toy model. Its tokenizers are built here; the rest is configured in model.yaml."""

import random
from pathlib import Path

from nemo.collections.asr.models import EncDecMultiTaskModel
from nemo.collections.common.tokenizers.canary_tokenizer import CanaryTokenizer
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model
from omegaconf import OmegaConf
from sentencepiece import sentencepiece_model_pb2

from .grammar import LANGUAGES, sentence

CONFIG = Path(__file__).with_name("model.yaml")
PIECES = 160  # per language; most words of the grammar are one or two pieces
SPECIAL_TOKENS = 1152  # as many as in canary-180m-flash


def special_tokens() -> list[str]:
    """The canary2 special tokens, in the order that gives them the flash models' ids. NeMo adds three more in front."""
    tokens = Path(__file__).with_name("special_tokens.txt").read_text().split()
    tokens += [f"<|{frame}|>" for frame in range(900)] + [f"<|spk{i}|>" for i in range(16)]
    return tokens + [f"<|spltoken{i}|>" for i in range(SPECIAL_TOKENS - 3 - len(tokens))]


def new_model(folder: Path) -> EncDecMultiTaskModel:
    """An untrained model with the tokenizers in `folder`, which are built if the folder does not exist."""
    if not folder.exists():
        _make_tokenizers(folder)
    config = OmegaConf.load(CONFIG)
    config.tokenizer = {
        "dir": None,
        "type": "agg",
        "langs": {name: {"dir": str(folder / name), "type": "bpe"} for name in ("spl_tokens", *LANGUAGES)},
        "custom_tokenizer": {
            "_target_": f"{CanaryTokenizer.__module__}.{CanaryTokenizer.__name__}",
            "tokenizers": None,
        },
    }
    model = EncDecMultiTaskModel(cfg=config)
    for name, tokenizer in model.cfg.tokenizer.langs.items():
        tokenizer.dir = name  # instead of its path on the training machine
    return model


def _make_tokenizers(folder: Path) -> None:
    """Build the tokenizer of special tokens and, for each language, one trained on sentences of the grammar."""
    CanaryTokenizer.build_special_tokenizer(special_tokens(), folder / "spl_tokens", force_rebuild=True)
    slim(folder / "spl_tokens" / "tokenizer.model")
    for language in LANGUAGES:
        make_pieces(folder / language, (language,), PIECES)


def make_pieces(folder: Path, languages: tuple[str, ...], size: int, longest: int = -1) -> None:
    """Build a tokenizer of `size` pieces of at most `longest` characters (-1: any) for the grammar in `languages`."""
    rng = random.Random(0)
    sentences = [sentence(rng, "train") for _ in range(4000)]
    text = folder / "text.txt"
    folder.mkdir(parents=True)
    lines = (s.text(language, pnc=i % 3 > 0) for language in languages for i, s in enumerate(sentences))
    text.write_text("\n".join(lines))
    create_spt_model(
        str(text), size, -1, False, tokenizer_type="bpe", output_dir=str(folder), max_sentencepiece_length=longest
    )
    slim(folder / "tokenizer.model")


def slim(model: Path) -> None:
    """Remove the Unicode normalisation table (240 kB that the grammar does not need) and the training's paths."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
    proto.normalizer_spec.name, proto.normalizer_spec.precompiled_charsmap = "identity", b""
    proto.trainer_spec.ClearField("input")
    proto.trainer_spec.ClearField("model_prefix")
    model.write_bytes(proto.SerializeToString())
