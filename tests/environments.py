"""Environments of their own for other projects' programs, whose pins differ from ours."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from filelock import FileLock
from uv import find_uv_bin

ROOT = Path(__file__).parents[1]


def python_with(requirements: Path, name: str, *, and_ours: bool = False) -> Path:
    """A Python that has what a requirements file lists; its environment is made once and kept beside ours.

    and_ours: it also has this project, and what is installed for it.
    """
    folder = ROOT / ".venv" / name
    python, wanted = folder / "bin" / "python", requirements.read_text(encoding="utf-8")
    made = folder / "requirements.txt"
    # Two runs of the tests may want it at the same time.
    with FileLock(ROOT / ".venv" / f"{name}.lock"):
        if not made.exists() or made.read_text(encoding="utf-8") != wanted:
            _uv("venv", "--clear", "--python", sys.executable, folder)
            _uv("pip", "install", "--python", python, "--requirements", requirements)
            if and_ours:
                packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
                (packages / "ours.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
            made.write_text(wanted, encoding="utf-8")
    return python


def _uv(*arguments: str | Path) -> None:
    # With pip this takes ten times as long.
    subprocess.run([find_uv_bin(), "--quiet", *arguments], check=True)
