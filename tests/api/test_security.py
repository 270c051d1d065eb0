"""Access control: allowed hosts, allowed origins and API keys; and clients cannot name files to open."""

import asyncio
import json
import re
import subprocess
import sys

import httpx
import pytest
import websockets

from server.settings import Settings

KEYS = ("first-long-key", "second-long-key")


@pytest.fixture
def client(serve_mock) -> httpx.Client:
    return serve_mock()


@pytest.fixture
def guarded(serve_mock) -> httpx.Client:
    """A server with API keys. The client sends none by default."""
    client = serve_mock(api_keys=KEYS, allowed_origins=("https://app.example",))
    del client.headers["authorization"]
    return client


def error(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]
    return response.json()["error"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_a_foreign_host_is_refused_on_every_path(client, host):
    for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/transcribe"), ("GET", "/docs")):
        refused = error(client.request(method, path, headers={"host": host}), 403)
        assert "CANARY_ALLOWED_HOSTS" in refused["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "192.168.1.7:8000"])
def test_localhost_and_ip_addresses_are_always_allowed_as_hosts(client, host):
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_more_hosts_can_be_allowed_by_a_setting(serve_mock):
    client = serve_mock(allowed_hosts=("canary.lan",))
    assert client.get("/health", headers={"host": "Canary.lan:8000"}).status_code == 200
    assert client.get("/health", headers={"host": "other.lan"}).status_code == 403


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "file://", "chrome-extension://a"],
)
def test_a_foreign_page_cannot_post(client, mock, wav, origin):
    for path in ("/transcribe", "/translate", "/v1/audio/transcriptions", "/v1/audio/translations"):
        refused = error(client.post(path, files={"file": wav()}, headers={"origin": origin}), 403)
        assert "CANARY_ALLOWED_ORIGINS" in refused["message"]
        assert "access-control-allow-origin" not in client.options(path, headers={"origin": origin}).headers
    assert not mock.heard


def test_the_servers_own_page_can_post(client, wav):
    own = str(client.base_url).rstrip("/")
    assert client.post("/transcribe", content=wav(), headers={"origin": own}).status_code == 200


def test_an_allowed_origin_can_post_and_read_and_others_still_cannot(guarded, wav):
    headers = {"origin": "https://app.example", "authorization": f"Bearer {KEYS[0]}"}
    response = guarded.post("/transcribe", content=wav(), headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in response.headers
    preflight = guarded.options(
        "/v1/audio/transcriptions",
        headers={
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        },
    )
    assert preflight.status_code == 200
    assert (
        guarded.post("/transcribe", content=wav(), headers={**headers, "origin": "https://no.example"}).status_code
        == 403
    )


def test_every_configured_key_gives_access_and_nothing_else_does(guarded, wav):
    for key in KEYS:
        bearer = {"authorization": f"bearer {key}"}
        assert guarded.post("/transcribe", content=wav(), headers=bearer).status_code == 200
        assert guarded.get("/v1/models", headers=bearer).status_code == 200
    for wrong in (
        "",
        "Bearer",
        "Bearer first-long-ke",
        "Bearer first-long-keyy",
        "Basic first-long-key",
        "Bearer ÿé",
    ):
        response = guarded.get("/v1/models", headers={"authorization": wrong.encode("latin-1")} if wrong else {})
        assert error(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


def test_only_health_checks_and_the_page_work_without_a_key(guarded):
    paths = guarded.get("/openapi.json").json()["paths"]
    open_paths = {path for path in paths if guarded.get(path).status_code != 401}
    assert open_paths == {"/health", "/ready"}
    assert guarded.get("/docs").status_code == 200
    assert guarded.get("/nope").status_code == 401


def test_serving_on_a_public_address_needs_a_key_or_an_explicit_option(tmp_path):
    command = [sys.executable, "-m", "server", "serve", "--host", "0.0.0.0", "--model", str(tmp_path / "none.nemo")]
    run = subprocess.run([*command], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "--api-key" in run.stderr
    # With either option it goes on to load the model, which does not exist.
    for allowed in (["--public-without-key"], ["--api-key", "a-long-key"]):
        run = subprocess.run(
            [*command, "--port", "0", *allowed], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert run.returncode == 1
        assert "no such file" in run.stderr


@pytest.mark.parametrize(
    ("host", "public"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("box", True)]
)
def test_which_addresses_are_public(host, public):
    assert Settings(_env_file=None, host=host).is_public == public


def test_by_default_no_other_machine_can_connect(monkeypatch):
    monkeypatch.delenv("CANARY_HOST", raising=False)
    assert not Settings(_env_file=None).is_public


def test_printed_settings_do_not_contain_the_keys(monkeypatch):
    monkeypatch.setenv("CANARY_API_KEYS", ",".join(KEYS))
    settings = Settings(_env_file=None)
    assert [key.get_secret_value() for key in settings.api_keys] == list(KEYS)
    assert KEYS[0] not in f"{settings!r} {settings.model_dump_json()}"


@pytest.mark.parametrize("model", ["/etc/passwd", "../toy", "org/name", "toy.nemo", "http://127.0.0.1/x", "a" * 5000])
def test_a_client_cannot_name_a_path_or_a_repository(client, wav, model):
    for path in ("/transcribe", "/v1/audio/transcriptions"):
        refused = error(client.post(path, files={"file": wav()}, data={"model": model}), 404)
        assert refused["code"] == "model_not_found"
        assert len(refused["message"]) < 200


def websocket_answer(url: str, **options) -> tuple[int, str | None]:
    """(101, the subprotocol) if the websocket was accepted, otherwise (the status, the error's code)."""

    async def connect() -> tuple[int, str | None]:
        try:
            async with websockets.connect(url, proxy=None, **options) as connection:
                return 101, connection.subprotocol
        except websockets.InvalidStatus as refused:
            return refused.response.status_code, json.loads(refused.response.body)["error"]["code"]

    return asyncio.run(connect())


@pytest.fixture
def live_url(guarded) -> str:
    return f"ws://127.0.0.1:{guarded.base_url.port}/v1/realtime?intent=transcription"


def test_a_foreign_page_or_host_cannot_open_a_websocket(live_url):
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    assert websocket_answer(live_url, additional_headers=headers)[0] == 101
    for origin in ("https://evil.example", "null"):
        assert websocket_answer(live_url, additional_headers=headers, origin=origin) == (403, "forbidden")
    assert websocket_answer(live_url, additional_headers=headers, origin="https://app.example")[0] == 101
    foreign = live_url.replace("127.0.0.1", "evil.example")
    refused = websocket_answer(foreign, additional_headers=headers, host="127.0.0.1")
    assert refused == (403, "forbidden")


def test_a_websocket_needs_a_key_as_a_header_or_a_subprotocol(live_url):
    assert websocket_answer(live_url) == (401, "invalid_api_key")
    wrong = ["realtime", "openai-insecure-api-key.wrong"]
    assert websocket_answer(live_url, subprotocols=wrong) == (401, "invalid_api_key")
    right = ["realtime", f"openai-insecure-api-key.{KEYS[1]}"]
    # The server must not echo the key.
    assert websocket_answer(live_url, subprotocols=right) == (101, "realtime")


def test_keys_come_from_the_settings_and_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# for the office\n\nfirst-long-key\n  second-long-key  \n")
    settings = Settings(_env_file=None, api_keys=("third-long-key",), api_key_file=file)
    keys = [key.get_secret_value() for key in settings.accepted_keys]
    assert keys == ["third-long-key", "first-long-key", "second-long-key"]
    assert "first-long-key" not in f"{settings!r} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# nothing\n", "{file} has no keys"),
        ("a-long-enough-key\nshort\n", "{file}, line 2: a key must have at least 8 characters, all of them ASCII"),
        ("schlüssel-mit-umlaut", "{file}, line 1: a key must have at least 8 characters, all of them ASCII"),
        (None, "cannot read {file}: No such file or directory"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_refused_without_showing_what_is_in_it(tmp_path, content, said):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(said.format(file=file))) as error:
        Settings(_env_file=None, api_key_file=file)
    assert not content or content.splitlines()[-1] not in str(error.value)


def test_a_key_from_a_file_opens_the_server(serve_mock, tmp_path):
    file = tmp_path / "keys"
    file.write_text("a-key-from-a-file\n")
    client = serve_mock(api_key_file=file)
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"authorization": "Bearer a-key-from-a-file"}).status_code == 200
