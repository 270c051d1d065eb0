"""Environments of their own for other projects' programs, whose pins differ from ours."""

import subprocess
import venv
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]


def python_with(requirements: Path, name: str) -> Path:
    """A Python that has what a requirements file lists; its environment is made once and kept beside ours."""
    folder = ROOT / ".venv" / name
    python, wanted = folder / "bin" / "python", requirements.read_text(encoding="utf-8")
    made = folder / "requirements.txt"
    # Two runs of the tests may want it at the same time.
    with FileLock(ROOT / ".venv" / f"{name}.lock"):
        if not made.exists() or made.read_text(encoding="utf-8") != wanted:
            venv.create(folder, with_pip=True, clear=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
            subprocess.run([*install, "-r", requirements], check=True)
            made.write_text(wanted, encoding="utf-8")
    return python
