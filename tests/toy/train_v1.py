"""Trains tests/toy/models/v1.nemo: the toy fine-tuned for the prompts and special tokens of canary-1b.

    pip install -r tests/toy/requirements.txt        # and the program espeak-ng
    python -m tests.toy.train_v1 convert/toy/toy.nemo tests/toy/models/v1.nemo

The rows of the embedding are moved to the ids of canary-1b's tokenizer; all other weights are copied unchanged. Then
the model learns transcripts and translations after prompts such as
`<|startoftranscript|><|en|><|transcribe|><|en|><|pnc|>`. canary-1b has no times and no context in its prompt.
"""

from dataclasses import replace
from pathlib import Path

from nemo.collections.asr.models import EncDecMultiTaskModel
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

from .examples import Answer, Utterance
from .fine_tuning import Loss, restored, train_variant, unpacked
from .network import slim
from .train import Tokens, decoder_loss

STEPS, RATE = 360, 1e-3
# Ids 1 to 30. With <unk> before them and the word mark after them there are 32, as in canary-1b.
SPECIAL_TOKENS = [
    "<pad>",
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|de|>", "<|fr|>"),
    *("<|transcribe|>", "<|translate|>", "<|nopnc|>", "<|pnc|>", "<|nospeech|>"),
    *(f"<|spltoken{i}|>" for i in range(18)),
]
# Tokens that the toy lacks, and the tokens whose rows they start from.
INITIAL_TOKENS = {"<|transcribe|>": "<|notimestamp|>", "<|translate|>": "<|timestamp|>"}


class V1Tokens(Tokens):
    """Converts answers to token ids with canary-1b's prompts."""

    def _before(self, answer: Answer) -> list[int]:
        return []

    def _prompt(self, answer: Answer) -> list[str]:
        return [
            "<|startoftranscript|>",
            f"<|{answer.source}|>",
            "<|transcribe|>" if answer.source == answer.target else "<|translate|>",
            f"<|{answer.target}|>",
            "<|pnc|>" if answer.pnc else "<|nopnc|>",
        ]


def new_v1(toy: Path, folder: Path) -> tuple[EncDecMultiTaskModel, Loss]:
    """The toy with canary-1b's special tokens, and its loss."""
    special = folder / "spl_tokens"
    text = special / "text.txt"
    special.mkdir()
    text.write_text("\n".join(SPECIAL_TOKENS))
    size = len(SPECIAL_TOKENS) + 2
    create_spt_model(str(text), size, -1, False, output_dir=str(special), user_defined_symbols=SPECIAL_TOKENS)
    slim(special / "tokenizer.model")
    config = unpacked(toy, folder / "toy")
    config.prompt_format, config.prompt_defaults = "canary", None
    config.tokenizer.langs.spl_tokens = {"dir": str(special), "type": "bpe"}
    config.head.num_classes = config.transf_decoder.config_dict.vocab_size = None
    model = EncDecMultiTaskModel(cfg=config)
    model.cfg.tokenizer.langs.spl_tokens.dir = "spl_tokens"  # instead of its path on the training machine
    parent = restored(toy)
    weights = parent.state_dict()
    rows = _rows(parent.tokenizer, model.tokenizer, len(model.state_dict()["log_softmax.mlp.layer0.bias"]))
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name] if tensor.shape == weights[name].shape else weights[name][rows])
    tokens = V1Tokens(model.tokenizer)
    return model, lambda batch: decoder_loss(model, tokens, [without_times(item) for item in batch])[0]


def _rows(old, new, count: int) -> list[int]:
    """For each of `count` new ids, the toy's id of the same token or of the token to start from."""
    shift = old.tokenizers_dict["spl_tokens"].vocab_size - new.tokenizers_dict["spl_tokens"].vocab_size
    rows = [i + shift if i < new.vocab_size else 0 for i in range(count)]
    for token, i in new.special_tokens.items():
        rows[i] = old.special_tokens[INITIAL_TOKENS.get(token, token)]
    rows[0] = 0  # <unk>
    return rows


def without_times(item: Utterance) -> Utterance:
    """The utterance with only the answers that canary-1b can give, without duplicates."""
    answers = {(a.source, a.target, a.pnc): replace(a, times=None, context=[]) for a in item.answers}
    return replace(item, answers=list(answers.values()))


if __name__ == "__main__":
    train_variant(__doc__, new_v1, STEPS, RATE)
