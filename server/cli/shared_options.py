"""Options that several commands take."""

from typing import Annotated

import typer

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Known name, Hugging Face repository, .nemo file or converted folder.  [CANARY_MODEL; default: toy]",
    ),
]
LanguageOption = Annotated[
    str | None,
    typer.Option(
        "--language",
        "-l",
        metavar="LANGUAGE",
        help="Spoken language; auto detects it.  [CANARY_DEFAULT_LANGUAGE; default: auto]",
    ),
]
TargetOption = Annotated[
    str | None, typer.Option("--target-language", "-t", metavar="LANGUAGE", help="Translate into this language.")
]
PncOption = Annotated[bool, typer.Option("--pnc/--no-pnc", help="Write punctuation and capital letters.")]
BeamOption = Annotated[
    int | None, typer.Option(min=1, max=32, metavar="NUMBER", help="Beam width. By default the model's own.")
]
