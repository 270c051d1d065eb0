"""POST /transcribe and /translate, and what every answer has in common; the model's answers are known."""

import io
import socket
import threading

import httpx
import numpy as np
import pytest
import soundfile

from model.task import Task


@pytest.fixture
def client(serve_mock) -> httpx.Client:
    return serve_mock(max_upload_mb=1, max_audio_s=10)


def error(response: httpx.Response, status: int) -> dict:
    """The error of a response, which has this status and OpenAI's shape and nothing else."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code", "request_id"}
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    assert body["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return body["error"]


def test_a_form_and_a_raw_body_give_the_same_answer(client, wav):
    form = client.post("/transcribe", files={"file": wav()}, data={"language": "de"})
    raw = client.post("/transcribe?language=de", content=wav())
    # what `curl --data-binary` says of its body
    urlencoded = {"content-type": "application/x-www-form-urlencoded"}
    curl = client.post("/transcribe?language=de", content=wav(), headers=urlencoded)
    answers = [response.json() for response in (form, raw, curl)]
    timings = [answer.pop("timing") for answer in answers]
    assert all(timing["audio_s"] == 1.0 and timing["total_s"] > 0 for timing in timings)
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] == {
        "text": "1 s & <none>.",
        "language": "de",
        "language_source": "request",
        "target_language": "de",
        "duration": 1.0,
        "segments": [{"start": 0.0, "end": 1.0, "text": "1 s & <none>.", "tokens": [1, 2], "words": []}],
        "model": "mock",
    }


def test_a_language_that_was_not_given_is_found_out_and_said_to_be(client, wav):
    for body in (
        client.post("/transcribe", content=wav()).json(),
        client.post("/transcribe?language=auto", content=wav()).json(),
        client.post("/transcribe", files={"file": wav()}, data={"language": ""}).json(),
    ):
        assert (body["language"], body["language_source"], body["language_probability"]) == ("de", "detected", 0.9)


def test_a_language_that_the_settings_assume_is_said_to_be_assumed(serve_mock, wav):
    client = serve_mock(default_language="fr")
    body = client.post("/transcribe", content=wav()).json()
    assert (body["language"], body["language_source"]) == ("fr", "default")
    assert "language_probability" not in body
    body = client.post("/translate?target_language=fr", content=wav()).json()
    assert (body["language"], body["target_language"]) == ("fr", "fr")


@pytest.mark.parametrize("written", ["de", "DE", "de-DE", "de_AT", "german", "German"])
def test_a_language_may_be_written_in_the_usual_ways(client, wav, written):
    assert client.post("/transcribe", params={"language": written}, content=wav()).json()["language"] == "de"


def test_timestamps_and_pnc_reach_the_model(client, wav):
    body = client.post("/transcribe?timestamps=word&pnc=false", content=wav()).json()
    assert body["text"] == "1 s & <word>"
    assert [word["word"] for word in body["segments"][0]["words"]] == ["1", "s", "&", "<word>"]


def test_each_format_has_its_media_type(client, wav):
    def answer(name: str) -> tuple[str, str]:
        response = client.post("/transcribe", params={"format": name}, content=wav())
        return response.headers["content-type"], response.text

    assert answer("text") == ("text/plain; charset=utf-8", "1 s & <none>.\n")
    cue = "1\n00:00:00,000 --> 00:00:01,000\n1 s & <segment>.\n"
    assert answer("srt") == ("application/x-subrip; charset=utf-8", cue)
    cue = "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n1 s &amp; &lt;segment&gt;.\n"
    assert answer("vtt") == ("text/vtt; charset=utf-8", cue)


def test_an_accept_header_chooses_the_format_it_likes_best(client, wav):
    for accept, media_type in (
        ("text/plain;q=0.5, text/vtt", "text/vtt"),
        ("text/vtt;q=0.1, application/x-subrip;q=0.9", "application/x-subrip"),
        ("image/png", "application/json"),
        # what is no number is no wish
        (b"text/plain;q=\xb2", "application/json"),
        ("text/plain;q=1.0.0", "application/json"),
    ):
        response = client.post("/transcribe", content=wav(), headers={"accept": accept})
        assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, media_type)


def test_the_shape_of_subtitles_is_the_settings_unless_a_request_says_another(serve_mock, wav):
    client = serve_mock(subtitle_line_length=5)

    def lines(**fields: str) -> list[str]:
        text = client.post("/transcribe", params={"format": "srt", **fields}, content=wav()).text
        return [line for line in text.splitlines() if line and "-->" not in line]

    assert lines() == ["1", "1 s &", "<segment>."]
    assert lines(line_length="42") == ["1", "1 s & <segment>."]
    assert lines(lines="1") == ["1", "1 s &", "2", "<segment>."]
    openai = {"files": {"file": wav()}, "data": {"response_format": "vtt"}}
    assert "\n1 s &amp;\n&lt;segment&gt;.\n" in client.post("/v1/audio/transcriptions", **openai).text
    refused = client.post("/transcribe?format=srt&lines=0", content=wav())
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "lines")


def test_translation_goes_to_english_unless_another_target_is_given(client, wav):
    body = client.post("/translate?language=de", content=wav()).json()
    assert (body["language"], body["target_language"]) == ("de", "en")
    body = client.post("/translate", content=wav()).json()
    assert (body["language"], body["language_source"], body["target_language"]) == ("de", "detected", "en")
    body = client.post("/translate?language=en&target_language=fr", content=wav()).json()
    assert (body["language"], body["language_source"], body["target_language"]) == ("en", "request", "fr")


@pytest.mark.parametrize("path", ["/transcribe", "/translate", "/v1/audio/translations"])
def test_a_target_that_is_the_spoken_language_asks_for_a_transcript_on_every_route(client, mock, wav, path):
    fields = {"language": "english", "target_language": "en-GB"}
    assert client.post(path, files={"file": wav()}, data=fields).json()["text"]
    assert mock.tasks == [Task("en", None, timestamps="none")]


def test_a_language_pair_that_the_model_does_not_translate_is_refused(client, wav):
    refused = error(client.post("/translate?language=de&target_language=fr", content=wav()), 400)
    assert "does not translate de to fr" in refused["message"]
    assert (refused["code"], refused["param"]) == ("unsupported_language_pair", "target_language")


@pytest.mark.parametrize(
    ("query", "param", "said"),
    [
        ("language=pl", "language", "'pl' is not supported by mock; must be one of en, de, fr"),
        ("language=klingon", "language", "'klingon' is not supported; must be one of bg, cs,"),
        ("timestamps=letter", "timestamps", "'letter' is not valid; must be one of none, segment, word"),
        ("format=doc", "format", "'doc' is not valid; must be one of json, text, srt, vtt"),
        ("pnc=perhaps", "pnc", "'perhaps' is not valid; must be true or false"),
        ("langauge=de", "langauge", "unknown field 'langauge'; supported: file, model, language, target_language"),
        ("language=de&language=en", "language", "language is given twice: 'de' and 'en'"),
    ],
)
def test_a_field_that_is_not_possible_is_named_with_what_is(client, wav, query, param, said):
    refused = error(client.post(f"/transcribe?{query}", content=wav()), 400)
    assert said in refused["message"]
    assert refused["param"] == param


def test_junk_audio_is_a_bad_request(client):
    for junk in (b"\0" * 1024, b"no sound at all"):
        assert error(client.post("/transcribe", content=junk), 400)["code"] == "invalid_audio"
        refused = error(client.post("/transcribe", files={"file": ("talk.wav", junk, "audio/wav")}), 400)
        assert refused["message"].startswith("Unsupported or damaged audio file. Supported: wav, aiff, caf, flac, mp3")
        assert refused["param"] == "file"


def test_a_form_or_a_body_without_a_file_is_refused_with_an_example(client, wav):
    assert "-F file=@" in error(client.post("/transcribe", files={"sound": wav()}), 400)["message"]
    assert "-F file=@" in error(client.post("/transcribe", files={"file": (None, "talk.wav")}), 400)["message"]
    assert "--data-binary @" in error(client.post("/transcribe"), 400)["message"]


def test_a_broken_form_is_a_bad_request(client):
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        error(client.post("/transcribe", content=b"--y\r\njunk", headers={"content-type": content_type}), 400)


def test_audio_over_the_cap_on_seconds_is_refused(client, wav):
    refused = error(client.post("/transcribe", content=wav(11)), 400)
    assert (refused["code"], refused["message"]) == (
        "audio_too_long",
        "The audio is 11.0 s long; the limit is 10 s.",
    )


def test_a_body_over_the_cap_is_refused_while_it_is_read_whether_or_not_its_length_is_said(client):
    big = b"\0" * 3_000_000
    pieces = (big[i : i + 65536] for i in range(0, len(big), 65536))
    for response in (
        client.post("/transcribe", content=big),
        client.post("/transcribe", content=pieces),
        client.post("/transcribe", files={"file": big}),
    ):
        refused = error(response, 413)
        assert refused["code"] == "body_too_large"
        assert refused["message"] == "The request body is larger than 1 MB, the server's limit."


@pytest.mark.parametrize(("path", "status"), [("/transcribe", 413), ("/nope", 404)])
def test_a_sender_who_never_ends_is_answered_and_cut_off(client, path, status):
    def endless():
        while True:
            yield b"\0" * 65536

    error(client.post(path, content=endless()), status)
    assert client.get("/health").status_code == 200


def test_a_client_that_sends_all_before_it_reads_still_gets_its_answer(client):
    address, size = (client.base_url.host, client.base_url.port), 20_000_000
    with socket.create_connection(address, timeout=10) as connection:
        head = "POST /transcribe HTTP/1.1", "Host: localhost", f"Content-Length: {size}", "", ""
        connection.sendall("\r\n".join(head).encode() + b"\0" * size)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_body_whose_announced_length_is_over_the_cap_is_refused_before_it_is_sent(client):
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=10) as connection:
        head = "POST /transcribe HTTP/1.1", "Host: localhost", "Content-Length: 2000000", "Expect: 100-continue"
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413")


def test_other_statuses_have_the_same_shape(client):
    assert error(client.get("/nope"), 404)["code"] == "not_found"
    wrong_method = client.get("/transcribe")
    assert error(wrong_method, 405)["message"] == "Method not allowed; use POST."
    assert wrong_method.headers["allow"] == "POST"


def test_a_failing_model_is_a_500_that_says_nothing_of_its_insides_and_the_next_request_is_served(client, wav, caplog):
    response = client.post("/transcribe", content=wav(level=0.95))
    assert error(response, 500)["code"] == "transcription_failed"
    assert "0xdeadbeef" not in response.text
    assert response.headers["x-should-retry"] == "false"
    assert "0xdeadbeef" in caplog.text
    assert client.post("/transcribe", content=wav()).status_code == 200


def test_an_unexpected_exception_is_a_500_with_a_request_id_that_the_log_has_too(client, wav, caplog, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("secret internals")

    monkeypatch.setattr("server.text.formats.to_dict", broken)
    response = client.post("/transcribe", content=wav())
    request_id = response.headers["x-request-id"]
    assert request_id in error(response, 500)["message"]
    assert "secret" not in response.text
    assert request_id in caplog.text
    assert "secret internals" in caplog.text


def test_a_full_line_is_a_503_that_says_when_to_come_back(serve_mock, mock, wav):
    client = serve_mock(max_queue=1)
    mock.gate.clear()
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(client.post("/transcribe", content=wav()))) for _ in "ab"]
    threads[0].start()
    assert mock.entered.wait(10)
    threads[1].start()
    while client.get("/health").json()["waiting"] < 1:
        pass
    response = client.post("/transcribe", content=wav())
    assert error(response, 503)["code"] == "queue_full"
    assert int(response.headers["retry-after"]) > 0
    takes_files = [path for path, methods in client.get("/openapi.json").json()["paths"].items() if "post" in methods]
    assert len(takes_files) == 4
    for path in takes_files:
        assert error(client.post(path, content=wav()), 503)["code"] == "queue_full"
    assert error(client.post("/transcribe?model=other", content=wav()), 404)["code"] == "model_not_found"
    # It is refused before its body is read.
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(b"POST /transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 503")
    mock.gate.set()
    for thread in threads:
        thread.join(30)
    assert [answer.status_code for answer in answers] == [200, 200]


def test_requests_sent_at_once_get_each_their_own_answer(serve_mock, mock, wav):
    client = serve_mock()
    mock.gate.clear()
    lengths = [1.0, 1.25, 1.5, 1.75]
    texts: dict[float, str] = {}

    def ask(seconds: float) -> None:
        texts[seconds] = client.post("/transcribe", content=wav(seconds)).json()["text"]

    threads = [threading.Thread(target=ask, args=[seconds]) for seconds in lengths]
    threads[0].start()
    assert mock.entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while client.get("/health").json()["waiting"] < 3:
        pass
    mock.gate.set()
    for thread in threads:
        thread.join(30)
    assert texts == {seconds: f"{seconds:g} s & <none>." for seconds in lengths}
    assert sorted(mock.heard) == [round(seconds * 16000) for seconds in lengths]


@pytest.mark.parametrize(
    ("query", "least_s", "most_s"),
    [("language=en", 1, 3), ("language=en&detect_each=true", 1, 3), ("language=auto&detect_each=true", 5, 10)],
)
def test_pieces_are_as_long_as_the_settings_say_unless_the_language_is_found_out_in_each(
    serve_mock, mock, samples, query, least_s, most_s
):
    speech = [soundfile.read(sample.path, dtype="float32")[0] for sample in samples.values()]
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.concatenate(speech), 16000, format="WAV")  # louder, the model fails
    client = serve_mock(pass_s=3, loop_guard=False)
    assert client.post(f"/transcribe?{query}", content=file.getvalue()).status_code == 200
    assert least_s < max(mock.heard) / 16000 <= most_s


def test_a_caller_who_hangs_up_leaves_the_line_without_a_fuss(serve_mock, mock, wav, caplog):
    client = serve_mock()
    mock.gate.clear()
    first = threading.Thread(target=lambda: client.post("/transcribe", content=wav()))
    first.start()
    assert mock.entered.wait(10)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/transcribe", content=wav(2), timeout=httpx.Timeout(10, read=2.0))
    while client.get("/health").json()["waiting"]:
        pass
    mock.gate.set()
    first.join(30)
    assert mock.heard == [16000]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_health_says_what_is_running(client):
    response = client.get("/health")
    assert response.status_code == 200
    body = response.json()
    assert (body["status"], body["model"], body["dtype"]) == ("ok", "mock", "float32")
    assert body["languages"] == ["en", "de", "fr"]
    assert body["device"].startswith(("cpu", "gpu"))
    assert body["version"].count(".") == 2
    assert (body["running"], body["waiting"]) == (0, 0)
