"""Where canary-server installs from wheels alone, asked of the package index for each platform and Python.

    python -m tests.packaging

Resolves the dependencies as a computer of that kind would, within `constraints.txt` and without building anything, and
compares with what the documents promise. Needs the network and `uv`; exits with 1 if a promise does not hold.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


@dataclass(frozen=True)
class Platform:
    """name: as people say it; target: as uv does; extra: what is installed there; installs: what we promise."""

    name: str
    target: str
    extra: str = ""
    installs: bool = True


PLATFORMS = (
    Platform("macOS 14, arm64", "aarch64-apple-darwin"),
    Platform("Linux x86-64, glibc 2.35, CPU", "x86_64-manylinux_2_35", "cpu"),
    Platform("Linux aarch64, glibc 2.35, CPU", "aarch64-manylinux_2_35", "cpu"),
    Platform("Linux x86-64, glibc 2.35, CUDA 12", "x86_64-manylinux_2_35", "cuda12"),
    Platform("Linux x86-64, glibc 2.35, CUDA 13", "x86_64-manylinux_2_35", "cuda13"),
    Platform("macOS 14, Intel", "x86_64-apple-darwin", installs=False),
    Platform("Linux x86-64, glibc 2.31, CPU", "x86_64-manylinux_2_31", "cpu", installs=False),
)


def resolved(platform: Platform, python: str) -> tuple[list[str], str]:
    """The packages (`name==version`) that would be installed, or none and the reason."""
    command = ["uv", "pip", "compile", str(PROJECT), "--only-binary", ":all:", "--no-header", "--no-annotate", "-q"]
    command += ["--python-platform", platform.target, "--python-version", python]
    command += ["--constraint", str(PROJECT.with_name("constraints.txt"))]
    command += [
        "--extra",
        "evaluate",
        "--extra",
        "datasets",
        "--extra",
        "ray",
        *(["--extra", platform.extra] if platform.extra else []),
    ]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return [], " ".join(done.stderr.split())
    return [line for line in done.stdout.splitlines() if "==" in line], ""


def broken_promises(platform: Platform, packages: list[str], reason: str) -> list[str]:
    """What is otherwise than promised: installable or not, and free of torch and of CUDA where nobody asked for it."""
    if bool(packages) != platform.installs:
        return [f"resolves to {len(packages)} packages" if packages else f"does not resolve: {reason[:300]}"]
    names = {package.partition("==")[0] for package in packages}
    unwanted = {name for name in names if name == "torch" or re.match("nvidia-|cuda-", name)}
    if platform.extra.startswith("cuda"):
        unwanted = {name for name in unwanted if name == "torch"} | (names & {"mlx-cpu"})
    return [f"brings {', '.join(sorted(unwanted))}"] if unwanted else []


def main() -> int:
    failed = False
    for platform in PLATFORMS:
        for python in PYTHONS:
            packages, reason = resolved(platform, python)
            wrong = broken_promises(platform, packages, reason)
            failed = failed or bool(wrong)
            said = "; ".join(wrong) or (f"{len(packages)} wheels" if packages else "does not install, as documented")
            print(f"{'WRONG' if wrong else 'ok':6}{platform.name:36}Python {python:6}{said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
