"""What operators see: metrics, logs, settings, the documentation page, shutting down."""

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
from prometheus_client.parser import text_string_to_metric_families

from server.engine.admission import FIRST_SPEED
from server.logs import JsonFormatter
from server.settings import Settings, choices, flag, group, settings_table, variable

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
    # unknown paths do not become labels
    assert found["canary_requests_total"][("GET", "(none)", "404")] == 1
    assert found["canary_audio_seconds_total"][()] == pytest.approx(4)
    assert found["canary_real_time_factor_count"][()] == 2
    for stage in ("queue", "audio", "features", "encode", "decode"):
        assert found["canary_stage_seconds_count"][(stage,)] == 2
    for gauge in ("canary_queue_depth", "canary_running", "canary_batch_fill"):
        assert found[gauge][("mock",)] == 0
    assert found["canary_model_loaded"][("mock",)] == 1


def test_static_files_are_counted_under_their_folder(client):
    for path in ("/static/icon.svg", "/static/no-such-file.svg"):
        client.get(path)
    counts = metrics(client)["canary_requests_total"]
    assert {labels: n for labels, n in counts.items() if "static" in labels[1]} == {
        ("GET", "/static", "200"): 1,
        ("GET", "/static", "404"): 1,
    }
    assert ("GET", "(none)", "200") not in counts


def test_unknown_methods_are_counted_as_one(client):
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


def request_records(caplog, response: httpx.Response, count: int = 1) -> list[logging.LogRecord]:
    """The log lines of a request, which are written once its answer is out."""
    deadline, named = time.monotonic() + 10, response.headers["x-request-id"]
    while len(lines := [r for r in caplog.records if hasattr(r, "fields") and named in r.getMessage()]) < count:
        assert time.monotonic() < deadline
    return lines


def test_the_log_has_a_line_for_each_request_and_nothing_of_its_content(client, wav, caplog):
    secret = "a-word-that-nobody-may-read"
    with caplog.at_level(logging.DEBUG):
        response = client.post(
            "/v1/audio/transcriptions?keywords=" + secret,
            files={"file": (secret, wav())},
            data={"prompt": secret, "language": "en"},
            headers={"authorization": f"Bearer {secret}"},
        )
        (line,) = request_records(caplog, response)
    assert line.fields == {
        "method": "POST",
        "path": "/v1/audio/transcriptions",
        "route": "/v1/audio/transcriptions",
        "status": 200,
        "seconds": line.fields["seconds"],
    }
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("server", "canary"))]
    assert secret not in " ".join(ours)
    assert response.json()["text"] not in " ".join(ours)


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/no/such/path?key=secret", "/no/such/path"),
        ("/two%0A2026-01-01%20INFO%20lines%1b[31m", "/two%0A2026-01-01%20INFO%20lines%1B%5B31m"),
        ("/%C3%BC/%FF", "/%C3%BC/%EF%BF%BD"),
        ("/" + "a" * 1000, "/" + "a" * 199 + "…"),
        ("/v1/models/none", "/v1/models/none"),
    ],
)
def test_the_log_names_the_path_of_every_request_escaped_cut_and_without_its_query(client, caplog, path, logged):
    with caplog.at_level(logging.INFO):
        response = client.get(path)
        (line,) = request_records(caplog, response)
    assert response.status_code == 404
    assert line.fields["path"] == logged
    assert line.getMessage().startswith(f"GET {logged} 404 in ")
    assert line.getMessage().isprintable()


def test_requests_for_static_files_and_probes_are_logged_only_at_debug(client, caplog):
    with caplog.at_level(logging.DEBUG):
        for path, level in (
            ("/static/style.css", logging.DEBUG),
            ("/docs-assets/favicon.png", logging.DEBUG),
            ("/health", logging.DEBUG),
            ("/static/no-such-file.svg", logging.INFO),
            ("/", logging.INFO),
        ):
            (line,) = request_records(caplog, client.get(path))
            assert (path, line.levelno) == (path, level)


def test_a_slash_at_the_end_is_a_404_that_names_the_right_path(client, wav):
    for path in ("/transcribe", "/v1/audio/transcriptions", "/docs"):
        response = client.post(f"{path}/", content=wav())
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"
        assert response.json()["error"]["message"] == f"Not found; the path is {path}, without a trailing slash."
    message = client.get("/none/").json()["error"]["message"]
    assert message == "Not found; /docs lists the available paths."


def test_json_logs_are_one_object_per_line():
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "two\nlines %s", ("here",), None)
    record.fields = {"route": "/transcribe", "status": 200}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["level"], told["status"]) == ("two\nlines here", "info", 200)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["time"])


def test_the_table_of_settings_names_each_under_its_group():
    table = settings_table()
    for name, field in Settings.model_fields.items():
        section = table.partition(f"**{group(field)}**\n")[2].partition("\n\n**")[0]
        (row,) = [row for row in section.splitlines() if row.startswith(f"| `{flag(name)}` |")]
        assert f"| `{variable(name)}` |" in row
        assert f"| {field.description}" in row
        assert all(f"`{choice}`" in row for choice in choices(field))
    assert "| `--port` | `CANARY_PORT` | `8000` |" in table
    assert "| `--model` | `CANARY_MODEL` | `toy` |" in table
    assert "| `--loop-guard` | `CANARY_LOOP_GUARD` | `true` |" in table
    assert "| `--pass` | `CANARY_PASS_S` |  |" in table


def test_options_take_precedence_over_the_environment_and_that_over_env_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("CANARY_PORT=1111\nCANARY_MAX_QUEUE=11\nCANARY_MODEL=a,b\n")
    monkeypatch.setenv("CANARY_PORT", "2222")
    assert (Settings().port, Settings().max_queue, Settings().model) == (2222, 11, ("a", "b"))
    assert Settings(port=3333).port == 3333


@pytest.mark.parametrize("given", ["8", 8])
def test_bits_may_be_text_or_numbers(given):
    assert Settings(_env_file=None, quantize=given).quantize == 8


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="Input should be 4 or 8"):
        Settings(_env_file=None, quantize="16")


@pytest.mark.parametrize("origin", ["*", "https://a.example/", "a.example", "https://a.example/path"])
def test_what_is_not_an_origin_is_refused(origin):
    with pytest.raises(ValueError, match="is not an origin"):
        Settings(_env_file=None, allowed_origins=(origin,))


def test_the_documentation_page_loads_nothing_from_other_servers(client):
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


def test_a_request_over_the_limit_of_connections_is_told_when_the_work_before_it_is_done(serve_mock, mock, wav):
    client = serve_mock(max_connections=1)
    mock.gate.clear()
    busy = threading.Thread(target=lambda: client.post("/transcribe?language=en", content=wav(30.0)))
    busy.start()
    assert mock.entered.wait(10)
    response = client.post("/transcribe?language=en", content=wav())
    error, retry_after = response.json()["error"], response.headers["retry-after"]
    assert (response.status_code, error["code"]) == (503, "too_many_requests")
    # 30 s of audio, at the speed that is assumed at first or, on a busy machine, a lower one.
    assert int(retry_after) >= 30 / FIRST_SPEED
    assert error["message"] == f"Limit of 1 concurrent requests reached; try again in {retry_after} s."
    mock.gate.set()
    busy.join(30)


def test_ctrl_c_lets_running_requests_finish(start_server, mock, wav):
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


def test_a_request_that_does_not_end_does_not_hold_up_the_stop(start_server, mock, wav):
    client = start_server(lambda source, progress: mock, model=("mock",), shutdown_s=1)
    mock.gate.clear()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(client.post("/transcribe?language=en", content=wav())))
    asking.start()
    assert mock.entered.wait(10)
    client.server.should_exit = True
    asking.join(20)
    is_waiting = asking.is_alive()
    mock.gate.set()
    asking.join(30)
    assert not is_waiting
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "stopping")
    assert answers[0].headers["retry-after"] == "5"


def test_a_json_log_is_json_from_the_first_line(tmp_path):
    command = [sys.executable, "-m", "server", "serve", "--model", str(tmp_path / "none.nemo"), "--log-format", "json"]
    run = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert run.returncode == 1
    lines = run.stderr.splitlines()
    assert all(json.loads(line)["level"] for line in lines[:-1])
    assert lines[-1].startswith("canary: ")
