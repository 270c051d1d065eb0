"""SentencePiece tokenizers: one model for all languages (canary-1b-v2), or one for each (the other Canaries)."""

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from model.config import TokenizerConfig

SPECIAL = "spl_tokens"
PAD = "<pad>"

_SPECIAL_TOKEN = re.compile(r"<\|[^|>]+\|>")
_WORD_START = "▁"


class TokenizerError(ValueError):
    """A tokenizer file is missing or broken, or a tokenizer lacks a token."""


def load_pieces(path: Path) -> SentencePieceProcessor:
    """The SentencePiece model in a file. Raises TokenizerError."""
    try:
        return pieces_from(path.name, path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"{path.name} cannot be read: {error.strerror}") from None


def pieces_from(name: str, content: bytes) -> SentencePieceProcessor:
    """The SentencePiece model in a file's content. Raises TokenizerError, which names the file."""
    try:
        model = SentencePieceProcessor(model_proto=content)
        # Its pieces are decoded only when they are read.
        for i in range(model.vocab_size()):
            model.id_to_piece(i)
    except Exception as error:  # the exception type differs between versions of the library
        raise TokenizerError(f"{name} is not a SentencePiece model: {error}") from None
    return model


class Tokenizer:
    """Text to ids and back. `special` maps every `<|…|>` token, and `<pad>`, to its id."""

    special: dict[str, int]
    vocab_size: int

    def __init__(self) -> None:
        self._special_ids = {i for token, i in self.special.items() if token.startswith("<|")}
        # `<|12|>` means the 12th encoder step.
        self.time_steps = {i: int(token[2:-2]) for token, i in self.special.items() if token[2:-2].isdecimal()}

    def encode(self, text: str, language: str) -> list[int]:
        """Ids of plain text in `language`."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a string of special tokens."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Text of ids, with special tokens written out."""
        raise NotImplementedError

    def text(self, ids: list[int]) -> str:
        """What ids add to a text, without special tokens. More ids only make it longer."""
        return self.decode([i for i in ids if not self.is_special(i)])

    def piece(self, token: int) -> str:
        """The token as the vocabulary has it, with ▁ for a space."""
        raise NotImplementedError

    def starts_word(self, token: int) -> bool:
        """Whether a word begins with this token."""
        return token < self.vocab_size and self.piece(token).startswith(_WORD_START)

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def special_id(self, token: str) -> int:
        """Raises TokenizerError if there is no such token."""
        try:
            return self.special[token]
        except KeyError:
            raise TokenizerError(f"the tokenizer has no {token}") from None


class AggregateTokenizer(Tokenizer):
    """A SentencePiece model for special tokens and one for each language; ids are offset in the archive's order."""

    def __init__(self, models: dict[str, SentencePieceProcessor]):
        self._models = models
        self._offsets: dict[str, int] = {}
        self._pieces: list[str] = []
        for language, model in models.items():
            self._offsets[language] = len(self._pieces)
            self._pieces += [model.id_to_piece(i) for i in range(model.vocab_size())]
        self.vocab_size = len(self._pieces)
        special = models[SPECIAL]
        pieces = ((special.id_to_piece(i), i + self._offsets[SPECIAL]) for i in range(special.vocab_size()))
        self.special = {p: i for p, i in pieces if _SPECIAL_TOKEN.fullmatch(p) or p == PAD}
        super().__init__()

    def encode(self, text: str, language: str) -> list[int]:
        if language not in self._models or language == SPECIAL:
            raise TokenizerError(f"the tokenizer has no model for {language!r}")
        return [i + self._offsets[language] for i in self._models[language].encode(text)]

    def encode_prompt(self, text: str) -> list[int]:
        return [self.special_id(token) for token in _SPECIAL_TOKEN.findall(text)]

    def decode(self, ids: list[int]) -> str:
        known = (self._pieces[i] for i in ids if i < self.vocab_size)
        return "".join(known).replace(_WORD_START, " ")

    def piece(self, token: int) -> str:
        return self._pieces[token]


class SingleTokenizer(Tokenizer):
    """One SentencePiece model, which has the special tokens among its pieces."""

    def __init__(self, model: SentencePieceProcessor):
        self._model = model
        self.vocab_size = model.vocab_size()
        pieces = ((model.id_to_piece(i), i) for i in range(self.vocab_size))
        self.special = {p: i for p, i in pieces if _SPECIAL_TOKEN.fullmatch(p) or p == PAD}
        super().__init__()

    def encode(self, text: str, language: str) -> list[int]:
        return self._model.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        # As one string: SentencePiece puts a ▁ before it, as in training.
        return self._model.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._model.decode([i for i in ids if i < self.vocab_size])

    def piece(self, token: int) -> str:
        return self._model.id_to_piece(token)


def load_tokenizer(
    folder: Path,
    config: TokenizerConfig,
    required: tuple[str, ...] = (),
    single: type[SingleTokenizer] = SingleTokenizer,
) -> Tokenizer:
    """The tokenizer of a converted folder.

    required: special tokens that it must have; single: the class for one model for all languages.
    Raises TokenizerError if a token, or a file, is missing or broken.
    """
    models = {language: load_pieces(folder / name) for language, name in config.models.items()}
    if config.type == "agg" and SPECIAL not in models:
        raise TokenizerError(f"the aggregate tokenizer has no {SPECIAL}; it has {', '.join(models)}")
    tokenizer = AggregateTokenizer(models) if config.type == "agg" else single(next(iter(models.values())))
    if missing := [token for token in required if token not in tokenizer.special]:
        raise TokenizerError(f"the tokenizer has no {', '.join(missing)}")
    return tokenizer
