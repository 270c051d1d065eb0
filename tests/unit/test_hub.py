"""A name or a path becomes a converted folder, once. The Hub's own client talks to a server in this process."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert.cache import default_cache_dir
from convert.errors import ConversionError, HubError
from convert.hub import MODELS, resolve
from convert.upload import model_card
from model.canary.config import CanaryConfig
from model.config import QuantizationConfig, read_config
from tests import archives
from tests.hub_server import COMMIT, Hub, serving

REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"
URL = f"/{REPO}/resolve/main/{FILE}"
PIECE = 10 * 2**20

RESOLVE = """
import json, logging, sys, time
time.sleep = lambda seconds: None  # the Hub's client waits between its tries
logging.basicConfig(level=logging.INFO, format="%(message)s")
from convert.errors import ConversionError
from convert.hub import resolve
steps, folder, error = [], None, None
try:
    folder = str(resolve(sys.argv[1], progress=lambda *step: steps.append(step)))
except ConversionError as refused:
    error = str(refused)
print(json.dumps({"folder": folder, "error": error, "torch": "torch" in sys.modules, "steps": steps}))
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return archives.tiny_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def hub(archive):
    with serving(Hub(REPO, {FILE: archive})) as hub:
        yield hub


@pytest.fixture
def large_hub(tmp_path):
    """With an archive of several of the pieces, of 10 MiB, in which the Hub's client writes to disk."""
    files = archives.members("180m-flash") | {"padding": bytes(2**24)}
    with serving(Hub(REPO, {FILE: archives.write_archive(tmp_path / FILE, files)})) as hub:
        yield hub


@pytest.fixture
def start(tmp_path):
    """Resolve a model in a process of its own, as a first or second start does."""

    def resolved(name: str, url: str = "http://127.0.0.1:9", **environment: str) -> dict:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            [sys.executable, "-c", RESOLVE, name],
            capture_output=True,
            text=True,
            timeout=120,
            env={**kept, **environment},
        )
        assert process.returncode == 0, process.stderr
        answer = json.loads(process.stdout)
        assert "\n" not in (answer["error"] or "")
        return answer | {"log": process.stderr}

    return resolved


# ---- from the Hub ----


def test_a_known_name_is_downloaded_and_converted_with_its_licence_told(start, hub):
    first = start("canary-180m-flash", hub.url)
    config = json.loads((Path(first["folder"]) / "config.json").read_text())
    assert (first["error"], config["name"]) == (None, "canary-180m-flash")
    size = hub.files[FILE].stat().st_size
    assert ["downloading", size, size] in first["steps"]
    assert first["steps"][-1][0] == "converting"
    assert first["steps"][-1][1] == first["steps"][-1][2] > 50
    assert "nvidia/canary-180m-flash is licensed CC-BY-4.0" in first["log"]


def test_the_second_start_needs_no_network_and_no_torch(start, hub):
    first = start("canary-180m-flash", hub.url)
    asked = len(hub.requests)
    second = start("canary-180m-flash")
    assert second["folder"] == first["folder"]
    assert (first["torch"], second["torch"]) == (True, False)
    assert (len(hub.requests), second["steps"]) == (asked, [])


def test_a_broken_download_is_resumed_where_it_broke(start, large_hub):
    large_hub.break_after = [PIECE + 1000]
    assert start("canary-180m-flash", large_hub.url)["error"] is None
    assert large_hub.requests[-2:] == [f"GET {URL}", f"GET {URL} bytes={PIECE}-"]


def test_a_download_that_keeps_breaking_is_one_line_and_the_next_start_tries_again(start, large_hub):
    large_hub.break_after = [PIECE + 1000] + 20 * [0]
    failed = start("canary-180m-flash", large_hub.url)
    assert failed["folder"] is None
    assert failed["error"].startswith(f"Hub repository {REPO} could not be downloaded (RemoteProtocolError: ")
    assert failed["error"].endswith(f"check the network to {large_hub.url} and start again")
    assert {asked.rpartition(" ")[2] for asked in large_hub.requests[2:]} == {f"bytes={PIECE}-"}
    large_hub.break_after = []
    assert start("canary-180m-flash", large_hub.url)["error"] is None


def test_a_repository_and_a_revision_are_found_by_listing(start, archive):
    with serving(Hub("someone/their-canary", {"README.md": archive, "weights/best.nemo": archive})) as hub:
        found = start(f"someone/their-canary@{COMMIT}", hub.url)
    assert Path(found["folder"]).name == f"someone--their-canary@{COMMIT}-float32"
    assert json.loads((Path(found["folder"]) / "config.json").read_text())["name"] == "best"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.nemo", "b.nemo"], "holds several .nemo files (a.nemo, b.nemo): download one yourself and give its path"),
        (["model.safetensors"], "holds no .nemo file: download one yourself and give its path"),
    ],
)
def test_a_repository_without_exactly_one_archive_says_what_it_holds(start, archive, files, message):
    with serving(Hub("someone/other", dict.fromkeys(files, archive))) as hub:
        assert start("someone/other", hub.url)["error"] == f"Hub repository someone/other {message}"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated: accept its terms at {url}/nvidia/canary-180m-flash, then log in with"),
        (401, "RepoNotFound", "does not exist, or needs permission: check the name, then `hf auth login` or HF_TOKEN"),
        (401, "GatedRepo", "is gated: accept its terms at {url}/nvidia/canary-180m-flash, then log in with"),
        (401, "", "refused access (401): log in with `hf auth login` or set HF_TOKEN to a token that may"),
        (403, "", "refused access (403): log in with `hf auth login` or set HF_TOKEN to a token that may"),
        (404, "RepoNotFound", "does not exist, or needs permission: check the name, then `hf auth login` or HF_TOKEN"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_that_says_what_to_do(start, hub, status, code, message):
    hub.status, hub.error = status, code
    error = start("canary-180m-flash", hub.url)["error"]
    assert error.startswith(f"Hub repository {REPO} {message.format(url=hub.url)}")


def test_an_unknown_revision_is_named(start, hub):
    error = start("canary-180m-flash@v9", hub.url)["error"]
    assert error == f"Hub repository {REPO} has no revision 'v9': leave out @v9 or name a branch, tag or commit it has"


def test_a_token_from_the_environment_is_sent(start, hub):
    start("canary-180m-flash", hub.url, HF_TOKEN="hf_test")
    assert set(hub.tokens) == {"Bearer hf_test"}


def test_no_network_is_one_line_that_says_so(start):
    error = start("canary-180m-flash", "http://127.0.0.1:9")["error"]
    assert error.startswith(f"Hub repository {REPO} could not be downloaded (ConnectError")
    assert error.endswith("check the network to http://127.0.0.1:9 and start again")


def test_offline_without_a_copy_names_the_setting(start, hub):
    error = start("canary-180m-flash", hub.url, HF_HUB_OFFLINE="1")["error"]
    assert "is not on this machine and HF_HUB_OFFLINE is set: unset it once" in error
    assert hub.requests == []


def test_offline_an_archive_downloaded_before_is_converted(start, hub, tmp_path):
    first = start("canary-180m-flash", hub.url)
    asked = len(hub.requests)
    again = start("canary-180m-flash", hub.url, HF_HUB_OFFLINE="1", CANARY_CACHE=str(tmp_path / "elsewhere"))
    assert Path(again["folder"]).parent != Path(first["folder"]).parent
    assert (again["error"], len(hub.requests)) == (None, asked)


# ---- from this machine ----


def test_an_archive_is_converted_once_for_each_precision_and_again_when_it_changes(tmp_path, archive):
    path = tmp_path / "mine.nemo"
    path.write_bytes(archive.read_bytes())
    first = resolve(path)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(path)) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert resolve(path, dtype="bfloat16") != first
    os.utime(path, (1, 1))
    assert resolve(path) != first


def test_a_converted_folder_is_given_back_as_it_is(archive):
    folder = resolve(archive)
    assert resolve(folder) == folder
    assert resolve(str(folder), dtype="bfloat16") == folder


def test_of_a_folder_with_a_known_models_name_a_path_means_the_folder_and_the_bare_name_the_model(
    archive, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convert.convert.nemo_file", lambda *_: archive)
    resolve(archive).rename("canary-1b-v2")
    assert resolve("./canary-1b-v2") == resolve(Path("canary-1b-v2")) == Path("canary-1b-v2")
    assert resolve("canary-1b-v2").parent == tmp_path / "cache" / "models"


def test_weights_are_packed_when_asked_and_that_is_another_folder(archive):
    whole, packed = resolve(archive), resolve(archive, quantize=8)
    assert resolve(archive, quantize=8) == packed != whole
    assert read_config(packed, CanaryConfig).quantization == QuantizationConfig(8, 64)
    assert read_config(whole, CanaryConfig).quantization is None
    assert resolve(packed) == resolve(packed, quantize=8) == packed


def test_a_converted_folder_that_is_packed_otherwise_than_asked_is_refused(archive):
    whole, packed = resolve(archive), resolve(archive, quantize=8)
    with pytest.raises(ConversionError, match=r"converted already, and not packed: give the archive to have 4 bits"):
        resolve(whole, quantize=4)
    with pytest.raises(ConversionError, match=r"packed into 8 bits: give the archive to have 4 bits"):
        resolve(packed, quantize=4)


def test_bits_that_are_not_possible_are_answered_with_those_that_are(archive):
    with pytest.raises(ConversionError, match="quantize 5 is not one of 4, 8"):
        resolve(archive, quantize=5)


def test_the_toy_is_the_archive_that_ships_with_the_package(archive, monkeypatch):
    from dataclasses import replace

    assert MODELS["toy"].path is not None
    assert MODELS["toy"].path.parts[-3:] == ("convert", "toy", "toy.nemo")
    monkeypatch.setitem(MODELS, "toy", replace(MODELS["toy"], path=archive))
    assert json.loads((resolve("toy") / "config.json").read_text())["name"] == "canary-180m-flash"


def test_a_non_commercial_licence_is_a_warning(caplog, monkeypatch, archive):
    monkeypatch.setattr("convert.convert.nemo_file", lambda *_: archive)
    caplog.set_level(logging.INFO)
    resolve("canary-1b")
    records = [record for record in caplog.records if "licensed" in record.message]
    assert [record.levelname for record in records] == ["WARNING"]
    assert records[0].message == "nvidia/canary-1b is licensed CC-BY-NC-4.0 (non-commercial use only)"
    caplog.clear()
    resolve("canary-1b")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "whisper",
            "'whisper' is no model: give one of canary-180m-flash, canary-1b-flash, canary-1b, canary-1b-v2, toy",
        ),
        ("", "'' is no model"),
        ("no/such/model.nemo", "no/such/model.nemo: there is no such file"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_with_what_is_possible(name, message):
    with pytest.raises(HubError) as error:
        resolve(name)
    assert str(error.value).startswith(message)


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(HubError, match=r"holds no converted model: config\.json and model\.safetensors are not both"):
        resolve(tmp_path)


def test_an_unknown_precision_is_answered_with_those_possible(archive):
    with pytest.raises(ConversionError, match="dtype 'int4' is not one of float32, bfloat16, float16"):
        resolve(archive, dtype="int4")


def test_the_cache_lies_where_it_is_told_or_where_the_platform_keeps_such_things(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("CANARY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_cache_dir() == Path("/home/someone/.cache/canary-server")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/xdg")
    assert default_cache_dir() == Path("/var/tmp/xdg/canary-server")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_cache_dir() == Path("/home/someone/Library/Caches/canary-server")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, archive, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConversionError, match="set CANARY_CACHE to a folder that can"):
        resolve(archive)


# ---- to the Hub ----


@pytest.mark.parametrize(
    ("source", "tag", "licence"),
    [
        ("canary-1b", "cc-by-nc-4.0", "Licence: CC-BY-NC-4.0 (non-commercial use only)."),
        ("nvidia/canary-1b-v2", "cc-by-4.0", "Licence: CC-BY-4.0."),
        ("mine.nemo", "other", "Licence: as stated by the source."),
    ],
)
def test_a_model_card_names_the_licence_of_the_source(source, tag, licence):
    card = model_card("someone/canary-mlx", source)
    assert f"\nlicense: {tag}\n" in card
    assert licence in card
    assert ("base_model: nvidia/" in card) == (source != "mine.nemo")


def test_publishing_sends_the_folder_and_a_card_to_the_named_repository(archive, tmp_path, monkeypatch):
    import huggingface_hub

    from convert.convert import ConversionConfig, convert

    calls = []
    for name in ("create_repo", "upload_file", "upload_folder"):
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda self, *args, _name=name, **options: calls.append((_name, args, options))
        )
    convert(ConversionConfig(source=archive, output=tmp_path / "out", upload_repo="someone/mine"))
    assert [name for name, *_ in calls] == ["create_repo", "upload_file", "upload_folder"]
    assert calls[1][2]["path_in_repo"] == "README.md"
    assert calls[2][2]["folder_path"] == tmp_path / "out"


def test_publishing_without_permission_keeps_the_folder_and_says_what_to_do(archive, tmp_path, monkeypatch):
    import huggingface_hub

    from convert.convert import ConversionConfig, convert

    def refuse(*_, **__):
        raise huggingface_hub.errors.HfHubHTTPError("401 Unauthorized", response=None)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(HubError, match="is converted, but could not be uploaded to someone/mine"):
        convert(ConversionConfig(source=archive, output=tmp_path / "out", upload_repo="someone/mine"))
    assert (tmp_path / "out" / "config.json").is_file()
