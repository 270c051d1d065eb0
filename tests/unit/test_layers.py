"""Imports point one way."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HTTP = {"fastapi", "starlette", "uvicorn", "multipart", "python_multipart", "httpx", "websockets"}
EDGE = HTTP | {"typer", "pydantic", "pydantic_settings", "soundfile", "soxr", "av", "huggingface_hub", "nemo"}

FORBIDDEN = {
    "model": {"convert", "server", "torch", "yaml", *EDGE},
    "convert": {"server", "torch", "nemo", *HTTP},
    "server": {"torch", "nemo"},
}


# The wings of `server/`, the ground first: a module imports from its own layer and from those above it in this list.
LAYERS = [
    {"server.errors", "server.settings", "server.logs"},
    {"server.audio", "server.text"},
    {"server.engine"},
    {"server.longform", "server.live"},
    {"server.web"},
    {"server.canary", "server.cli", "server.__main__"},
]
WEB_LIBRARIES = {"fastapi", "starlette", "uvicorn"}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for top in ("server", "convert", "model") for file in (ROOT / top).rglob("*.py")}


@cache
def imported_modules(file: Path) -> set[str]:
    """Modules of this project that a file imports, wherever in it, except for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found & MODULES.keys()


def layer(module: str) -> int | None:
    for i, wings in enumerate(LAYERS):
        if any(module == wing or module.startswith(f"{wing}.") for wing in wings):
            return i
    return None


def test_each_module_of_the_server_is_in_a_wing_and_imports_nothing_from_a_higher_one():
    for module, file in MODULES.items():
        if module == "server" or not module.startswith("server"):
            continue
        own = layer(module)
        assert own is not None, f"{module} is in no wing"
        for other in imported_modules(file):
            above = layer(other)
            assert above is None or above <= own, f"{module} imports {other}, which is in a higher layer"


def test_no_modules_import_each_other_in_a_circle():
    order = TopologicalSorter({module: imported_modules(file) - {module} for module, file in MODULES.items()})
    assert set(order.static_order()) == MODULES.keys()


def test_only_the_web_wing_and_the_command_line_know_a_web_library():
    for module, file in MODULES.items():
        if not module.startswith(("server.web", "server.cli.serve")):
            wrong = imported_packages(file.read_text(encoding="utf-8"), "server") & WEB_LIBRARIES
            assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_only_the_benchmark_knows_a_family_of_models_by_name():
    families = {module for module in MODULES if re.match(r"model\.(canary|parakeet)\b", module)}
    assert "model.canary.model" in families
    for module, file in MODULES.items():
        if module.startswith("server") and not module.startswith("server.cli.bench"):
            wrong = imported_modules(file) & families
            assert not wrong, f"{module} imports {', '.join(wrong)}, and should use model.family and model.loading"


def test_no_layer_asks_which_library_its_arrays_are_of():
    for file in (ROOT / "model").rglob("*.py"):
        assert not re.search(r"isinstance\([^)]*ndarray", file.read_text(encoding="utf-8")), f"{file} tests a type"


@cache
def imported_packages(source: str, package: str) -> set[str]:
    """Top-level names that a file imports, wherever in it; a relative import counts as its own package."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(package if node.level else (node.module or "").partition(".")[0])
    return packages


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_from_server_to_convert_to_model(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        wrong = imported_packages(file.read_text(encoding="utf-8"), package) & FORBIDDEN[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_the_walk_sees_imports_inside_functions_and_behind_conditions():
    source = (
        "def f():\n    if x:\n        import torch.nn\n        from fastapi.routing import APIRoute\nfrom . import y"
    )
    assert imported_packages(source, "model") == {"torch", "fastapi", "model"}
