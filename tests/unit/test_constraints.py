"""constraints.txt names an exact version of everything that is installed, and nothing else."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

SYSTEMS = [("darwin", "Darwin", "arm64"), ("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64")]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def requirements() -> list[Requirement]:
    """All that pyproject.toml asks for: to run, with any extra, and in any dependency group."""
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    lists = [PROJECT["project"]["dependencies"], *extras.values(), *groups.values()]
    return [Requirement(line) for lines in lists for line in lines]


def versions(system: tuple[str, str, str], python: str) -> dict[str, str]:
    """The versions that are installed on a platform, by name."""
    environment = {
        "sys_platform": system[0],
        "platform_system": system[1],
        "platform_machine": system[2],
        "python_version": python,
        "python_full_version": f"{python}.1",
    }
    found: dict[str, str] = {}
    for line in LINES:
        pinned, _, marker = line.partition(" ; ")
        if not marker or Marker(marker).evaluate(environment):
            name, _, version = pinned.partition("==")
            assert name not in found, f"two versions of {name} on {system} with Python {python}"
            found[name] = version
    return found


def test_each_line_is_a_name_and_one_version_without_address_digest_or_local_build():
    assert len(LINES) > 100
    for line in LINES:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [\w '\"<>=!().]+)?", line), line


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system[0]}-{system[2]}")
def test_everything_that_is_asked_for_has_a_version_that_is_allowed(system, python):
    found = versions(system, python)
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        if not requirement.marker or requirement.marker.evaluate({"platform_system": system[1]}):
            assert name in found, f"make constraints: {name} is missing"
            assert found[name] in requirement.specifier, f"make constraints: {name} {found[name]}"


def test_packages_whose_private_parts_are_used_have_a_ceiling():
    ceilings = {
        requirement.name: any(each.operator == "<" for each in requirement.specifier) for requirement in requirements()
    }
    # server/web/protocols.py derives from uvicorn's protocols.
    assert ceilings["uvicorn"]


def test_versions_with_known_vulnerabilities_are_not_installed():
    """Checkpoints that run code, SentencePiece models that corrupt memory, forms that take up the processor."""
    vulnerable = {"torch": "2.9.1", "sentencepiece": "0.2.0", "python-multipart": "0.0.25"}
    for requirement in requirements():
        if version := vulnerable.get(canonicalize_name(requirement.name)):
            assert version not in requirement.specifier
