"""What `make` would run, and that it passes on only what it is given."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXACT = ["--constraint", "constraints.txt"]


def planned(*arguments: str, **variables: str) -> list[str]:
    """The commands of a target, as if nothing had been installed yet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", *arguments]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=kept | variables)
    return made.stdout.splitlines()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ((), ""),
        (("PORT=9000",), "--port '9000'"),
        (("MODEL=canary-180m-flash", "HOST=0.0.0.0"), "--model 'canary-180m-flash' --host '0.0.0.0'"),
    ],
)
def test_make_run_passes_only_the_options_that_it_is_given(given, options):
    # Without them, the settings hold; and other programs export variables of these names.
    command = planned("run", *given, HOST="x86_64-conda-linux-gnu", CANARY_PORT="9001")[-1]
    assert command.split() == [".venv/bin/canary", "serve", *options.split()]


def test_make_run_installs_the_runtime_alone_and_says_what_it_does():
    run, test = planned("run", EXTRAS="cpu"), planned("test", EXTRAS="cpu")
    assert [line.split("pip ")[1].split()[1:] for line in run if "pip " in line] == [
        ["install", "--quiet", "--upgrade", '"pip>=25.1"'],
        ["install", *EXACT, "--editable", "'.[cpu]'"],
    ]
    assert any("--group dev" in line for line in test)
    installing = [i for i, line in enumerate(test) if "pip " in line and "--quiet" not in line]
    assert len(installing) == 2
    assert all(test[i - 1].startswith('echo "== Installing') for i in installing)


@pytest.mark.parametrize(
    ("system", "runtime"), [("Linux x86_64", "'.[cpu]'"), ("Linux aarch64", "'.[cpu]'"), ("Darwin arm64", "'.'")]
)
def test_make_install_adds_what_the_tests_need(tmp_path, system, runtime):
    uname = tmp_path / "uname"
    uname.write_text(f'#!/bin/sh\nname="{system}"\n[ "$1" = -s ] && echo "${{name%% *}}" || echo "$name"\n')
    uname.chmod(0o755)
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    installing = [line.split("pip ")[1].split()[1:] for line in planned("install", PATH=path) if "pip " in line]
    assert installing[1:] == [["install", *EXACT, "--editable", runtime], ["install", *EXACT, "--group", "dev"]]


# As pip-audit 2.10 prints them: to standard error, but for the table.
ADVICE = "WARNING:pip_audit._cli:--no-deps is supported, but users are encouraged to fully hash their dependencies"
TABLE = "Name Version ID Fix Versions\nnumpy 2.0 PYSEC-1 2.1"
OFFLINE = "Traceback (most recent call last):\n  File ...\nrequests.exceptions.ConnectionError: name not known"
MIRROR = "ERROR:pip_audit._cli:numpy: Dependency not found on PyPI and could not be audited: numpy (2.0)"


@pytest.mark.parametrize(
    ("exit_code", "printed", "shown"),
    [
        (0, f"{ADVICE}\nNo known vulnerabilities found", "No known vulnerabilities found"),
        (1, f"{ADVICE}\nFound 1 known vulnerability in 1 package\n{TABLE}", "numpy 2.0 PYSEC-1 2.1"),
        (1, f"{ADVICE}\n{OFFLINE}", "nothing was audited. It needs a connection to PyPI itself"),
        (1, f"{ADVICE}\n{MIRROR}", "nothing was audited. It needs a connection to PyPI itself"),
    ],
    ids=["sound", "vulnerable", "offline", "mirror"],
)
def test_make_audit_says_what_it_found_or_that_it_could_not_ask(tmp_path, exit_code, printed, shown):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (("python", ""), ("pip-audit", f"cat >&2 <<'END'\n{printed}\nEND\nexit {exit_code}\n")):
        (programs / name).write_text(f"#!/bin/sh\n{script}")
        (programs / name).chmod(0o755)
    for name in (".runtime", ".dev"):
        (tmp_path / name).touch()
    made = subprocess.run(
        ["make", "--no-print-directory", "audit", f"VENV={tmp_path}"], capture_output=True, text=True, cwd=ROOT
    )
    assert (made.returncode != 0) == (exit_code != 0)
    assert shown in made.stdout
    assert ("nothing was audited" in made.stdout) == (printed.endswith((OFFLINE, MIRROR)))
    # Its reason alone, not the traceback.
    assert "Traceback" not in made.stdout


def test_make_quick_runs_the_unit_tests_alone_on_one_thread():
    assert planned("quick")[-1].split()[:5] == ["OMP_NUM_THREADS=1", ".venv/bin/python", "-m", "pytest", "tests/unit"]
