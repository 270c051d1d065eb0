"""Environments of their own for other projects' programs, whose pins differ from ours."""

import subprocess
import sysconfig
import venv
from pathlib import Path

from filelock import FileLock

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
            venv.create(folder, with_pip=True, clear=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
            subprocess.run([*install, "-r", requirements], check=True)
            if and_ours:
                packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
                (packages / "ours.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
            made.write_text(wanted, encoding="utf-8")
    return python
