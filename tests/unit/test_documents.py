"""The documents are true: links, maps, tables and commands hold against the code. Snippets run in tests/api."""

import importlib.util
import inspect
import json
import re
import shlex
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[2]
FOLDERS = ("convert", "docker", "docs", "model", "server", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.md"))])
ROOMS = ["server", "server/web/routes", "server/live", "server/longform", "model", "convert", "docker", "tests"]


def read(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)
every_room = pytest.mark.parametrize("room", ROOMS)


def without_code(markdown: str) -> str:
    return re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)


def links(document: Path) -> list[str]:
    """Targets within this repository."""
    text = without_code(read(document))
    targets = re.findall(r"\[[^]]*\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors(document: Path) -> set[str]:
    """What GitHub calls a document's headings in links."""
    headings = re.findall(r"^#+ (.+)$", without_code(read(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(document: str, marker: str) -> str:
    """What stands between <!-- marker --> and <!-- /marker -->."""
    found = re.search(rf"<!-- {marker} -->\n+(.*?)\n*<!-- /{marker} -->", read(document), re.DOTALL)
    assert found, f"{document} has no <!-- {marker} --> … <!-- /{marker} -->"
    return found[1]


def column(table: str, index: int = 0) -> list[str]:
    """The names in backticks in one column of a table."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [found for row in rows[2:] for found in re.findall(r"`([^`]+)`", row[index])]


def test_the_front_page_and_the_contributors_page_are_short():
    assert len(read("README.md").splitlines()) <= 150
    assert len(read("CONTRIBUTING.md").splitlines()) <= 45


def test_every_document_is_reached_by_links_from_the_front_page():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        document = todo.pop()
        if document not in reached and document.suffix == ".md":
            reached.add(document)
            todo += [(document.parent / target.partition("#")[0]).resolve() for target in links(document)]
    assert {name(document) for document in DOCUMENTS} == {name(document) for document in reached}


def test_the_front_page_links_every_room():
    targets = {target.partition("#")[0] for target in links(ROOT / "README.md")}
    assert {f"{room}/README.md" for room in ROOMS} <= targets


@every_document
def test_every_relative_link_and_anchor_exists(document):
    for target in links(document):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target}: there is no such heading"


@every_document
def test_every_path_in_backticks_exists(document):
    for path in re.findall(r"`([\w./-]+/[\w.-]*\.(?:py|md|toml|yaml|nemo|json|svg|png))`", read(document)):
        assert any((base / path).exists() for base in (ROOT, document.parent)), f"{path} does not exist"


def mapped(document: Path) -> list[str]:
    """The first column of a document's tables of files."""
    tables = re.findall(r"^\| file \|.*\n(?:\|.*\n)+", read(document), re.MULTILINE)
    return [path for table in tables for path in column(table)]


@every_document
def test_every_file_in_a_map_exists(document):
    for path in mapped(document):
        assert list(document.parent.glob(path)), f"{path} does not exist"


def contents(folder: Path) -> set[str]:
    """What a map of a folder has to name."""
    return {
        child.name + "/" * child.is_dir()
        for child in folder.iterdir()
        if child.name not in ("__init__.py", "__pycache__", "README.md") and not child.name.startswith(".")
    }


@every_room
def test_a_rooms_document_begins_with_its_job_and_maps_all_of_its_files(room):
    assert re.match(r"# .+\n\n[A-Z]", read(f"{room}/README.md"))
    paths = mapped(ROOT / room / "README.md")
    assert contents(ROOT / room) <= set(paths)
    # Where a map names a file of an inner folder, it names all of them.
    for inner in {path.rpartition("/")[0] for path in paths if re.search(r"/\w", path)}:
        assert {f"{inner}/{child}" for child in contents(ROOT / room / inner)} <= set(paths)


def shell_lines(markdown: str) -> list[str]:
    """Commands in the fenced and indented blocks, continuation lines joined and prompts dropped."""
    blocks = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^ {4,}(?:python|canary|make|curl) .*$", markdown, re.MULTILINE)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in text.splitlines()]


def commands(program: str) -> list[list[str]]:
    """The arguments of each `program …` in the documents, up to a pipe or redirection."""
    found = []
    for line in (line for document in DOCUMENTS for line in shell_lines(read(document))):
        words = shlex.split(line, comments=True)
        # NAME=value before the command
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words and words[0].rpartition("/")[2] == program:
            ends = [i for i, word in enumerate(words) if word in ("|", ">", "&", "&&", ";", "<")]
            found.append(words[1 : ends[0] if ends else None])
    return found


def test_the_command_line_takes_each_canary_command():
    from server.__main__ import main

    for arguments in commands("canary"):
        if arguments[0].startswith("-"):
            assert arguments in (["--help"], ["--version"])
            continue
        command, path = typer.main.get_command(main), "canary"
        while arguments and (group := getattr(command, "commands", None)):
            name, *arguments = arguments
            command, path = group.get(name), f"{path} {name}"
            assert command, f"{path} is not a command"
        # A stand-in such as talk.wav need not exist: only parsing is tried.
        command.make_context(path, arguments)


def test_each_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    named = {word for arguments in commands("make") for word in arguments if "=" not in word}
    assert {"run", "test", "quick", "lint"} <= named <= targets


def test_each_module_that_python_is_to_run_exists_and_has_the_options():
    modules = [arguments[1:] for arguments in commands("python") if arguments[0] == "-m"]
    for module, *arguments in modules:
        if module not in ("pytest", "venv"):
            found = importlib.util.find_spec(module)
            assert found, f"python -m {module}: there is no such module"
            assert found.origin
            source = Path(found.origin).read_text(encoding="utf-8")
            for option in (word for word in arguments if word.startswith("--")):
                assert f'"{option}"' in source, f"python -m {module} has no {option}"
    assert len(modules) > 10


def test_each_path_that_curl_is_sent_to_is_a_route():
    from server.settings import Settings
    from server.web.app import create_app

    paths = set(create_app(Settings(_env_file=None)).openapi()["paths"])
    for arguments in commands("curl"):
        urls = [word for word in arguments if re.match(r"(https?://)?(localhost|127\.0\.0\.1)(:\d+)?/", word)]
        assert urls, f"curl {' '.join(arguments)} names no address on this machine"
        for url in urls:
            path = "/" + url.removeprefix("http://").partition("/")[2].partition("?")[0]
            assert path in paths, f"{path} is not a route; there are {', '.join(sorted(paths))}"


@every_document
def test_every_json_block_is_json(document):
    for block in re.findall(r"^```json\n(.*?)^```", read(document), re.DOTALL | re.MULTILINE):
        json.loads(block)


@every_document
def test_every_variable_that_begins_with_canary_is_read_somewhere(document):
    from server.settings import Settings

    known = {f"CANARY_{field.upper()}" for field in Settings.model_fields}
    sources = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("model/**/*.py"))
    sources += read("tests/parity/conftest.py")
    for variable in re.findall(r"\bCANARY_[A-Z_]*[A-Z]\b", read(document)):
        is_read = variable in known or f'"{variable}"' in sources
        assert is_read, f"nothing reads {variable}"


def test_the_settings_table_lists_every_setting_as_it_is():
    from server.settings import settings_table

    table = settings_table()
    assert section("server/README.md", "settings").strip() == table.strip(), f"server/README.md should say:\n{table}"


@every_document
def test_every_setting_named_as_a_flag_is_one(document):
    from server.__main__ import main

    group: Any = typer.main.get_command(main)
    nested = [getattr(command, "commands", {}).values() for command in group.commands.values()]
    options = {
        option
        for command in (*group.commands.values(), *chain.from_iterable(nested))
        for parameter in command.get_params(typer.Context(command))
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    rooms = ("README.md", "server/", "convert/", "docker/", "model/")
    if name(document).startswith(rooms) and "toy" not in name(document):
        flags = set(re.findall(r"`(--[a-z][a-z-]+)", read(document))) - {"--build-arg"}
        assert flags <= options, f"{flags - options} are not options"


def test_the_table_of_errors_lists_every_code_with_its_status():
    from starlette.exceptions import HTTPException

    import server.errors
    from model.task import LanguagePairError, TaskError
    from server.web.answers import answer

    kinds = [kind for _, kind in inspect.getmembers(server.errors, inspect.isclass)]
    expected = {(kind.status, kind.code) for kind in kinds if issubclass(kind, server.errors.ServiceError)}
    tasks = TaskError("x", "language"), TaskError("x", "pnc"), LanguagePairError("x", "language")
    for error in (*tasks, HTTPException(404), HTTPException(405), RuntimeError()):
        response = answer(error)
        expected.add((response.status_code, json.loads(bytes(response.body))["error"]["code"]))
    # Answered below the application.
    for status, code in re.findall(r'error_response\((\d+), .*"(\w+)"\)', read("server/web/protocols.py")):
        expected.add((int(status), code))
    listed = set()
    for row in section("server/README.md", "errors").splitlines()[2:]:
        status, codes, _ = row.strip("|").split("|", 2)
        listed |= {(int(status), code) for code in re.findall(r"`([^`]+)`", codes)}
    assert listed == expected


def test_the_table_of_metrics_lists_all_that_are_there():
    from server.engine.registry import Engines
    from server.live.capacity import LiveCapacity
    from server.settings import Settings
    from server.web.metrics import Metrics

    engines = Engines(Settings(_env_file=None), lambda source, progress: None)  # type: ignore[arg-type, return-value]
    text = Metrics(engines, LiveCapacity()).text().decode()
    families = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    counted = {family for family, kind in families.items() if not (kind == "gauge" and family.endswith("_created"))}
    assert set(column(section("server/README.md", "metrics"))) == counted


def test_the_table_of_defences_lists_every_one_with_its_test():
    from tests.fault.mutations import table

    assert section("tests/README.md", "defences") == table(), f"tests/README.md should say:\n{table()}"


def test_the_tables_of_fields_list_every_field():
    from server.web.routes import captions, native

    routes = "server/web/routes/README.md"
    assert set(column(section(routes, "native fields"))) == set(native.Fields.model_fields)
    assert set(column(section(routes, "start fields"))) == set(captions.Start.model_fields) - {"type"}


def test_the_table_of_models_names_the_known_ones_with_their_licences():
    from convert.download import MODELS

    rows = re.findall(r"^\| (`(?:canary|parakeet)-.+?`) \|.*\| ([^|]+) \|$", read("README.md"), re.MULTILINE)
    licences = {model: licence for models, licence in rows for model in re.findall(r"`([^`]+)`", models)}
    assert licences.keys() | {"toy", "toy-parakeet"} == set(MODELS)
    for model, licence in licences.items():
        assert licence.startswith(MODELS[model].licence.split()[0] + ":"[: "NC" in licence])
