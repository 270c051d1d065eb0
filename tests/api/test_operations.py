"""What those who run the server see: metrics, logs, settings, the documentation page, the end."""

import json
import logging
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.__main__ import main
from server.logs import JsonFormatter
from server.settings import Settings, flag, settings_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(serve_mock) -> httpx.Client:
    return serve_mock(max_audio_s=10)


def metrics(client: httpx.Client) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, then by the labels' values."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_metrics_count_requests_audio_and_stages(client, wav):
    for _ in range(2):
        client.post("/transcribe?language=en", content=wav(2))
    client.post("/transcribe?language=en", content=b"junk")
    client.get("/a/path/that/someone/made/up")
    found = metrics(client)
    assert found["canary_requests_total"][("POST", "/transcribe", "200")] == 2
    assert found["canary_requests_total"][("POST", "/transcribe", "400")] == 1
    # paths that are made up do not become labels
    assert found["canary_requests_total"][("GET", "(none)", "404")] == 1
    assert found["canary_audio_seconds_total"][()] == pytest.approx(4)
    assert found["canary_real_time_factor_count"][()] == 2
    for stage in ("queue", "audio", "features", "encode", "decode"):
        assert found["canary_stage_seconds_count"][(stage,)] == 2
    for gauge in ("canary_queue_depth", "canary_running", "canary_batch_fill"):
        assert found[gauge][("mock",)] == 0
    assert found["canary_model_loaded"][("mock",)] == 1


def test_methods_that_are_made_up_are_counted_as_one(client):
    for method in ("BREW", "A" * 20_000, "WEBSOCKET"):
        assert client.request(method, "/health").status_code == 405
    client.request("PATCH", "/health")
    methods = {method for method, route, _ in metrics(client)["canary_requests_total"] if route == "/health"}
    assert methods == {"OTHER", "PATCH"}
    assert len(client.get("/metrics").content) < 20_000


def test_metrics_show_the_queue(client, mock, wav):
    mock.gate.clear()
    threads = [threading.Thread(target=lambda: client.post("/transcribe?language=en", content=wav())) for _ in "ab"]
    threads[0].start()
    assert mock.entered.wait(10)
    threads[1].start()
    while metrics(client)["canary_queue_depth"][("mock",)] < 1:
        pass
    assert metrics(client)["canary_running"][("mock",)] == 1
    mock.gate.set()
    for thread in threads:
        thread.join(30)


def test_the_log_has_a_line_for_each_request_and_nothing_of_what_was_said(client, wav, caplog):
    secret = "a-word-that-nobody-may-read"
    with caplog.at_level(logging.DEBUG):
        response = client.post(
            "/v1/audio/transcriptions?keywords=" + secret,
            files={"file": (secret, wav())},
            data={"prompt": secret, "language": "en"},
            headers={"authorization": f"Bearer {secret}"},
        )
        # the line is written once the answer is out
        deadline = time.monotonic() + 10
        named = response.headers["x-request-id"]
        while not (lines := [r for r in caplog.records if hasattr(r, "fields") and named in r.getMessage()]):
            assert time.monotonic() < deadline
    assert [line.fields["route"] for line in lines] == ["/v1/audio/transcriptions"]
    assert lines[0].fields["status"] == 200
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("server", "canary"))]
    assert secret not in " ".join(ours)
    assert response.json()["text"] not in " ".join(ours)


def test_json_logs_are_one_object_a_line():
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "two\nlines %s", ("here",), None)
    record.fields = {"route": "/transcribe", "status": 200}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["level"], told["status"]) == ("two\nlines here", "info", 200)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["time"])


def test_the_readme_lists_every_setting_as_it_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- settings -->\n+(.*?)\n*<!-- /settings -->", readme, re.DOTALL)
    assert table, "README has no settings between <!-- settings --> and <!-- /settings -->"
    assert table[1].strip() == settings_table().strip(), f"README should say:\n{settings_table()}"


def test_every_setting_has_an_option(capsys):
    import typer

    serve = typer.main.get_command(main).commands["serve"]  # type: ignore[attr-defined]
    options = {option for parameter in serve.params for option in parameter.opts}
    for name, field in Settings.model_fields.items():
        assert field.description
        assert flag(name) in options


def test_settings_come_from_options_before_the_environment_before_env_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("CANARY_PORT=1111\nCANARY_MAX_QUEUE=11\nCANARY_MODEL=a,b\n")
    monkeypatch.setenv("CANARY_PORT", "2222")
    assert (Settings().port, Settings().max_queue, Settings().model) == (2222, 11, ("a", "b"))
    assert Settings(port=3333).port == 3333


@pytest.mark.parametrize("given", ["8", 8])
def test_bits_are_numbers_whether_given_as_text_or_not(given):
    assert Settings(_env_file=None, quantize=given).quantize == 8


def test_bits_that_are_not_possible_are_named():
    with pytest.raises(ValueError, match="Input should be 4 or 8"):
        Settings(_env_file=None, quantize="16")


@pytest.mark.parametrize("origin", ["*", "https://a.example/", "a.example", "https://a.example/path"])
def test_an_origin_that_is_none_is_refused(origin):
    with pytest.raises(ValueError, match="is not an origin"):
        Settings(_env_file=None, allowed_origins=(origin,))


def test_the_documentation_page_needs_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.status_code == 200
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert links
    for link in links:
        assert link.startswith("/")
        assert client.get(link).status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"] == "canary-server"
    assert "://" not in page.text.replace("SwaggerUIBundle", "")


def test_the_openapi_document_describes_every_field_and_answer(client):
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["description"], path
            for answer in operation["responses"].values():
                assert answer["description"]
    for path in ("/transcribe", "/translate", "/v1/audio/transcriptions", "/v1/audio/translations"):
        form = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["required"] == ["file"]
        assert all("description" in field for name, field in form["properties"].items() if name != "response_format")
        assert {"200", "400", "401", "403", "404", "413", "500", "503"} <= set(
            document["paths"][path]["post"]["responses"]
        )


def test_over_the_most_connections_the_next_is_told_to_come_back(serve_mock, mock, wav):
    client = serve_mock(max_connections=1)
    mock.gate.clear()
    busy = threading.Thread(target=lambda: client.post("/transcribe?language=en", content=wav()))
    busy.start()
    assert mock.entered.wait(10)
    response = client.post("/transcribe?language=en", content=wav())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "too_many_requests")
    assert int(response.headers["retry-after"]) > 0
    mock.gate.set()
    busy.join(30)


def test_ctrl_c_lets_what_runs_finish(start_server, mock, wav):
    client = start_server(lambda source, progress: mock, model=("mock",))
    mock.gate.clear()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(client.post("/transcribe?language=en", content=wav())))
    asking.start()
    assert mock.entered.wait(10)
    client.server.should_exit = True  # what Ctrl-C sets
    threading.Timer(0.5, mock.gate.set).start()
    asking.join(30)
    assert answers[0].status_code == 200
    with pytest.raises(httpx.NetworkError):
        [client.get("/health") for _ in range(1000)]


def test_a_log_in_json_is_json_from_the_first_line(tmp_path):
    command = [sys.executable, "-m", "server", "serve", "--model", str(tmp_path / "none.nemo"), "--log-format", "json"]
    run = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert run.returncode == 1
    lines = run.stderr.splitlines()
    assert all(json.loads(line)["level"] for line in lines[:-1])
    assert lines[-1].startswith("canary: ")


def test_what_the_image_and_the_compose_file_set_are_settings():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]["canary"]
    named = {*re.findall(r"CANARY_[A-Z_]+(?==)", dockerfile), *service["environment"]}
    assert named <= {f"CANARY_{name.upper()}" for name in Settings.model_fields}
    assert (ROOT / "docker" / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert re.search(r"^USER canary$", dockerfile, re.MULTILINE)


def test_uploads_take_a_bounded_part_of_a_containers_memory_and_the_largest_fits():
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]["canary"]
    (bound,) = (re.fullmatch(r"/tmp:size=(\d+)g", place) for place in service["tmpfs"])
    assert bound
    assert Settings.model_fields["max_upload_mb"].default * 1e6 < int(bound[1]) * 2**30 <= 4 * 2**30
