"""What a defence is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defence:
    """what: the defence, in a few words; test: the one that must fail, below `tests`.

    edits: (what is in the file, what takes its place), which together take the defence out.
    """

    what: str
    file: str
    test: str
    edits: tuple[tuple[str, str], ...]


def defence(what: str, file: str, test: str, *texts: str) -> Defence:
    """texts: the edits, one after the other."""
    return Defence(what, file, test, tuple(zip(texts[::2], texts[1::2], strict=True)))
