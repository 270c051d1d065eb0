"""Take each defence out in a copy of this repository, and run the one test that must fail then.

    python -m tests.fault.mutations                     # all, about ten minutes
    python -m tests.fault.mutations --only uploads      # those whose fault, defence or file has this in it

Prints the table of tests/README.md with a column of results. Exits with 1 if a test did not fail.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fault.defences import DEFENCES, Defence

ROOT = Path(__file__).parents[2]
COPIED = ("server", "model", "convert", "tests", "pyproject.toml", "constraints.txt")
LIMIT_S = 300


def without(defence: Defence, root: Path = ROOT) -> str:
    """The text of the defence's file without it. Raises ValueError if the text to replace is not there exactly once."""
    text = (root / defence.file).read_text(encoding="utf-8")
    for old, new in defence.edits:
        if (count := text.count(old)) != 1:
            raise ValueError(f"{defence.file} has {old.strip()!r} {count} times; {defence.what!r} cannot be taken out")
        text = text.replace(old, new)
    return text


@contextmanager
def scratch_copy() -> Iterator[Path]:
    """A copy of this repository's code and tests."""
    with tempfile.TemporaryDirectory(prefix="canary-mutations-") as folder:
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(ROOT / name, Path(folder, name), ignore=ignored)
            else:
                shutil.copy2(ROOT / name, folder)
        yield Path(folder)


def verdict(copy: Path, test: str) -> str:
    """The result of a test in a copy: "passes", "fails", or "error" if it could not be run."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    # A test that hangs leaves no process behind.
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return "fails"
    if process.returncode == 0:
        return "passes"
    # Negative: without the defence, the test's own process was ended.
    if process.returncode < 0 or (process.returncode == 1 and re.search(r"\d+ failed", output)):
        return "fails"
    print(output, file=sys.stderr)
    return "error"


def verdict_without(defence: Defence, copy: Path) -> str:
    """The result of the defence's test without the defence. Leaves the copy as it was."""
    file = copy / defence.file
    original = file.read_text(encoding="utf-8")
    file.write_text(without(defence, copy), encoding="utf-8")
    try:
        return verdict(copy, defence.test)
    finally:
        file.write_text(original, encoding="utf-8")


def row(fault: str, defence: Defence) -> str:
    path, _, name = defence.test.partition("::")
    sentence = name.removeprefix("test_").replace("_", " ")
    return f"| {fault} | {defence.what} | `{defence.file}` | `{path}`: {sentence} |"


HEAD = "| against | taken out | of | the test that must fail |\n|---|---|---|---|"


def table() -> str:
    rows = (row(fault, each) for fault, defences in DEFENCES.items() for each in defences)
    return "\n".join([HEAD, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="words of a fault, a defence or a file")
    given = parser.parse_args()
    chosen = [
        (fault, each)
        for fault, defences in DEFENCES.items()
        for each in defences
        if given.only in f"{fault} {each.what} {each.file}"
    ]
    survivors = 0
    print(f"{HEAD.replace(chr(10), ' result |' + chr(10))}---|")
    with scratch_copy() as copy:
        for fault, each in chosen:
            result = verdict_without(each, copy)
            survivors += result != "fails"
            print(f"{row(fault, each)} {result} |", flush=True)
    print(f"{len(chosen)} defences taken out, {survivors} not noticed", file=sys.stderr)
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
