"""Real audio in, real text out: the toy model behind a running server and on the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest

LANGUAGES = ("en", "de", "es", "fr")
TOLERANCE_S = 0.25


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "server", *arguments]


@pytest.mark.parametrize("language", LANGUAGES)
def test_speech_is_transcribed(toy, samples, language):
    sample = samples[language]
    body = toy.post("/transcribe", params={"language": language}, content=sample.audio).json()
    assert body["text"] == sample.text
    assert (body["language"], body["target_language"]) == (language, language)
    assert body["duration"] == pytest.approx(sample.duration, abs=0.001)


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_have_the_times_at_which_they_were_spoken_and_add_up_to_the_text(toy, samples, language):
    sample = samples[language]
    body = toy.post("/transcribe", params={"language": language, "timestamps": "word"}, content=sample.audio).json()
    assert body["text"] == sample.text
    words = [word for segment in body["segments"] for word in segment["words"]]
    assert " ".join(word["word"] for word in words) == sample.text
    assert [word["word"] for word in words] == [word["word"] for word in sample.words]
    for heard, spoken in zip(words, sample.words, strict=True):
        assert heard["start"] == pytest.approx(spoken["start"], abs=TOLERANCE_S)
        assert heard["end"] == pytest.approx(spoken["end"], abs=TOLERANCE_S)
    for segment in body["segments"]:
        assert " ".join(word["word"] for word in segment["words"]) == segment["text"]
        assert (segment["start"], segment["end"]) == (segment["words"][0]["start"], segment["words"][-1]["end"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_speech_is_translated(toy, samples, language):
    sample = samples[language]
    for target, text in sample.translations.items():
        query = {"language": language, "target_language": target}
        body = toy.post("/translate", params=query, content=sample.audio).json()
        assert (body["text"], body["target_language"]) == (text, target)


@pytest.mark.parametrize("given", LANGUAGES)
@pytest.mark.parametrize("spoken", LANGUAGES)
def test_a_language_that_is_given_and_not_the_one_spoken_is_told_in_a_warning(toy, samples, spoken, given):
    body = toy.post("/transcribe", params={"language": given}, content=samples[spoken].audio).json()
    if given == spoken:
        assert "warnings" not in body
    else:
        (warning,) = body["warnings"]
        assert (warning["code"], warning["language"]) == ("language_mismatch", given)
        assert warning["detected_language"] == spoken
        assert warning["language_probability"] > 0.95


def test_a_warning_comes_in_every_json_answer_and_at_the_end_of_every_stream(toy, samples):
    form = {"files": {"file": samples["de"].audio}}
    (expected,) = toy.post("/transcribe", data={"language": "fr"}, **form).json()["warnings"]
    openai = "/v1/audio/transcriptions"
    for response_format in ("json", "verbose_json"):
        body = toy.post(openai, data={"language": "fr", "response_format": response_format}, **form).json()
        assert body["warnings"] == [expected]
    for path in ("/transcribe", openai):
        *_, last = toy.post(path, data={"language": "fr", "stream": "true"}, **form).text.split("data: ")
        assert json.loads(last)["warnings"] == [expected]
    assert "warnings" not in toy.post(openai, data={"language": "de"}, **form).json()
    translated = toy.post("/translate", data={"language": "fr"}, **form).json()
    assert translated["warnings"] == [expected]


def test_concurrent_requests_each_get_their_own_text(toy, samples):
    texts: dict[str, str] = {}

    def transcribe(language: str) -> None:
        response = toy.post("/transcribe", params={"language": language}, content=samples[language].audio)
        texts[language] = response.json()["text"]

    threads = [threading.Thread(target=transcribe, args=[language]) for language in LANGUAGES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == {language: samples[language].text for language in LANGUAGES}


def test_the_command_line_transcribes_several_files(cache, samples):
    files = [str(samples[language].path) for language in ("en", "de")]
    run = subprocess.run(command("transcribe", *files, "--format", "json"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["file"] for line in lines] == files
    assert [line["text"] for line in lines] == [samples["en"].text, samples["de"].text]
    wrong = subprocess.run(command("transcribe", files[1], "--language", "fr"), capture_output=True, text=True)
    assert wrong.returncode == 0
    assert f"{files[1]}: The speech sounds like German" in wrong.stderr


def test_serve_logs_its_address_and_a_command_to_try_and_ctrl_c_stops_it_cleanly(cache, samples):
    log: list[str] = []
    server = subprocess.Popen(
        command("serve", "--model", "toy", "--port", "0"),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Child processes of a shell's background job would otherwise ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert server.stderr
    with server:
        try:
            for line in server.stderr:
                log.append(line)
                if "try " in line:
                    break
            banner = "".join(log)
            for part in ("model   toy", "dtype   ", "device  ", "curl -F file=@"):
                assert part in banner
            url = re.search(r"serving on (http://127\.0\.0\.1:\d+)", banner)
            assert url, banner
            sample = samples["en"]
            query = {"language": "en", "format": "text"}
            response = httpx.post(
                f"{url[1]}/transcribe", params=query, files={"file": sample.audio}, trust_env=False, timeout=60
            )
            assert response.text == sample.text + "\n"
            server.send_signal(signal.SIGINT)
            rest = server.stderr.read()
            assert server.wait(30) == 0
        finally:
            server.kill()
    assert "stopped" in rest
    assert "Traceback" not in rest
