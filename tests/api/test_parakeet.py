"""A Parakeet beside a Canary in one server: what works the same, and what is refused with the model that does it."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pysubs2
import pytest
import soundfile
from websockets.sync.client import connect

from server import Canary
from tests.long.talk import word_error_rate

LANGUAGES = ("en", "de", "es", "fr")
RATE = 16_000
# A piece of TDT takes four frames at most, even if it is a longer word.
TOLERANCE_S = 0.26
NO_TRANSLATION = "toy-parakeet does not translate; a Canary model does"
SUCH_AS_TOY = ", such as 'toy' on this server."


@pytest.fixture(scope="module")
def both(start_server, cache) -> httpx.Client:
    """A client of a server with the toy Parakeet, its default, and the toy Canary, which is loaded on first use."""
    return start_server(model=("toy-parakeet", "toy"))


@pytest.fixture(scope="module")
def alone(start_server, cache) -> httpx.Client:
    """A client of a server with the toy Parakeet alone."""
    return start_server(model=("toy-parakeet",))


@pytest.fixture(scope="module")
def python(cache) -> Iterator[Canary]:
    with Canary.from_pretrained("toy-parakeet") as parakeet:
        yield parakeet


@pytest.fixture
def sdk(both) -> Iterator[openai.OpenAI]:
    with httpx.Client(trust_env=False) as http:
        yield openai.OpenAI(base_url=f"{both.base_url}/v1", api_key="none", http_client=http, max_retries=0)


def url(server: httpx.Client) -> str:
    return str(server.base_url).replace("http", "ws", 1).rstrip("/")


def spoken(body: dict) -> list[dict]:
    return [word for segment in body["segments"] for word in segment["words"]]


@pytest.mark.parametrize("language", LANGUAGES)
def test_speech_is_transcribed_without_naming_its_language_which_is_guessed_from_the_text(both, samples, language):
    sample = samples[language]
    body = both.post("/transcribe?timestamps=word", content=sample.audio).json()
    assert (body["text"], body["model"], body["timestamps_source"]) == (sample.text, "toy-parakeet", "model")
    assert (body["language"], body["language_source"], body["target_language"]) == (language, "text", language)
    assert 0.5 < body["language_probability"] <= 1
    assert body["language_runner_up"] in set(LANGUAGES) - {language}
    for heard, expected in zip(spoken(body), sample.words, strict=True):
        assert heard["word"] == expected["word"]
        assert heard["start"] == pytest.approx(expected["start"], abs=TOLERANCE_S)
        assert heard["end"] == pytest.approx(expected["end"], abs=TOLERANCE_S)
        assert 0 <= heard["confidence"] <= 1


def test_a_given_language_is_a_label_that_changes_no_text(both, samples):
    for given in LANGUAGES:
        body = both.post("/transcribe", params={"language": given}, content=samples["de"].audio).json()
        assert (body["text"], body["language"], body["language_source"]) == (samples["de"].text, given, "request")
        assert "language_probability" not in body
        assert "warnings" not in body


def test_a_target_language_that_is_spoken_asks_for_no_translation(both, samples):
    body = both.post("/translate?language=en", content=samples["en"].audio).json()
    assert (body["text"], body["target_language"]) == (samples["en"].text, "en")


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/translate", {}),
        ("/translate", {"language": "de"}),
        ("/transcribe", {"language": "de", "target_language": "fr"}),
        ("/v1/audio/translations", {}),
        ("/v1/audio/translations", {"language": "es", "model": "toy-parakeet"}),
    ],
)
def test_a_translation_is_refused_naming_the_canary_that_is_served(both, alone, samples, path, form):
    for server, message in ((both, NO_TRANSLATION + SUCH_AS_TOY), (alone, NO_TRANSLATION + ".")):
        response = server.post(path, data=form, files={"file": samples["de"].audio})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_language", "target_language")
        assert error["message"] == message


def test_a_canary_beside_it_translates(both, samples):
    body = both.post("/translate?model=toy&language=de", content=samples["de"].audio).json()
    assert (body["text"], body["model"]) == (samples["de"].translations["en"], "toy")
    models = [model["id"] for model in both.get("/v1/models").json()["data"]]
    states = {model["id"]: model["state"] for model in both.get("/ready").json()["models"]}
    assert (models, states) == (["toy-parakeet", "toy"], {"toy-parakeet": "ready", "toy": "ready"})


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        (
            {"language": "pl"},
            "unsupported_language",
            "language 'pl' is not supported by toy-parakeet; must be one of en, de, es, fr.",
        ),
        ({"prompt": "Anna"}, "unsupported_task", "toy-parakeet does not support a context."),
    ],
)
def test_what_it_cannot_do_is_refused_by_value(both, samples, query, code, message):
    response = both.post("/transcribe", params=query, content=samples["en"].audio)
    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["message"]) == (code, message)


def test_translated_captions_are_refused_naming_the_canary_that_is_served(both, alone):
    for server, message in ((both, NO_TRANSLATION + SUCH_AS_TOY), (alone, NO_TRANSLATION + ".")):
        with connect(f"{url(server)}/stream", proxy=None) as socket:
            socket.send(json.dumps({"type": "start", "sample_rate": RATE, "language": "en", "target_language": "de"}))
            error = json.loads(socket.recv(30))
        assert (error["type"], error["code"], error["message"]) == ("error", "invalid_request", message)
    for model in ("toy", "toy-parakeet"):
        with connect(f"{url(both)}/stream", proxy=None) as socket:
            socket.send(json.dumps({"type": "start", "sample_rate": RATE, "model": model}))
            ready = json.loads(socket.recv(30))
            assert (ready["type"], ready["model"]) == ("ready", model)


# The SDK calls the route for translations deprecated.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_the_sdk_transcribes_in_every_way(sdk, samples):
    sample = samples["fr"]
    for name in ("whisper-1", "toy-parakeet", "toy"):
        assert sdk.audio.transcriptions.create(model=name, file=sample.path).text == sample.text
    verbose = sdk.audio.transcriptions.create(
        model="toy-parakeet", file=sample.path, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert (verbose.language, verbose.text) == ("french", sample.text)
    assert [word.word for word in verbose.words] == [word["word"] for word in sample.words]
    streamed = list(sdk.audio.transcriptions.create(model="toy-parakeet", file=sample.path, stream=True))
    assert "".join(event.delta for event in streamed[:-1]) == streamed[-1].text == sample.text
    with pytest.raises(openai.BadRequestError, match="a Canary model does, such as 'toy'"):
        sdk.audio.translations.create(model="toy-parakeet", file=sample.path)


@pytest.mark.parametrize("model", ["toy-parakeet", "toy"])
def test_curl_gets_text_and_subtitles_from_both_models(both, samples, model):
    sample = samples["es"]
    for format in ("text", "srt", "vtt"):
        command = [shutil.which("curl") or "curl", "-sS", "--noproxy", "*", "-F", f"file=@{sample.path}"]
        command += ["-F", f"model={model}", "-F", "language=es"]
        run = subprocess.run([*command, f"{both.base_url}/transcribe?format={format}"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        if format == "text":
            assert run.stdout == sample.text + "\n"
        else:
            cues = list(pysubs2.SSAFile.from_string(run.stdout, format_=format))
            assert " ".join(cue.plaintext.replace("\n", " ") for cue in cues) == sample.text
            assert cues[0].start / 1000 == pytest.approx(sample.words[0]["start"], abs=TOLERANCE_S)


def test_segments_are_streamed_and_add_up_to_the_answer(both, samples):
    pause = np.zeros(2 * RATE, np.float32)
    names = LANGUAGES[::-1] * 2
    sound = np.concatenate([part for name in names for part in (soundfile.read(samples[name].path)[0], pause)])
    whole = both.post("/transcribe", content=wav(sound)).json()
    assert whole["text"] == " ".join(samples[name].text for name in names)
    events = both.post("/transcribe?stream=true", content=wav(sound)).text.split("\n\n")[:-1]
    sent = [json.loads(event.partition("data: ")[2]) for event in events]
    assert [segment["text"] for segment in sent[:-1]] == [segment["text"] for segment in whole["segments"]]
    assert sent[-1]["text"] == whole["text"]


def test_with_detect_each_every_segment_has_the_language_of_its_text(both, samples):
    pause = np.zeros(2 * RATE, np.float32)
    sound = np.concatenate([part for name in ("de", "fr") for part in (soundfile.read(samples[name].path)[0], pause)])
    body = both.post("/transcribe?detect_each=true", content=wav(sound)).json()
    assert body["text"] == f"{samples['de'].text} {samples['fr'].text}"
    assert body["language_source"] == "text"
    assert [segment["language"] for segment in body["segments"]] == ["de", "de", "fr", "fr"]


def test_a_long_recording_is_transcribed_in_one_pass_on_demand(both, samples, tmp_path):
    pause = np.zeros(RATE // 2, np.float32)
    file = tmp_path / "long.wav"
    file.write_bytes(wav(np.tile(np.concatenate([soundfile.read(samples["en"].path)[0], pause]), 6)))
    body = both.post("/transcribe?one_pass=true&timestamps=word&language=en", content=file.read_bytes()).json()
    words = samples["en"].text.split() * 6
    assert word_error_rate(words, body["text"].split()) < 0.05
    assert [word["word"] for word in spoken(body)] == body["text"].split()
    assert body["segments"][-1]["end"] == pytest.approx(body["duration"] - 0.5, abs=0.5)
    command = [sys.executable, "-m", "server", "transcribe", str(file), "--model", "toy-parakeet", "--one-pass"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, body["text"] + "\n")


def test_a_canary_refuses_long_audio_in_one_pass(both, samples):
    response = both.post("/transcribe?one_pass=true&model=toy", content=samples["en"].audio)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_task", "one_pass")
    assert error["message"] == "toy takes long audio in pieces only; a Parakeet model takes it whole."


def test_each_head_writes_with_its_own_times(both, python, samples):
    """The times show which head wrote: CTC tells how long a token is, and a duration of TDT ends at four frames."""
    words = {}
    for head in ("tdt", "ctc"):
        body = both.post("/transcribe", params={"head": head, "timestamps": "word"}, content=samples["en"].audio).json()
        assert body["text"] == samples["en"].text
        done = python.transcribe(samples["en"].path, timestamps="word", head=head)
        words[head] = spoken(body)
        assert words[head] == spoken(done.to_dict("text"))
        assert next(python.segments(samples["en"].path, timestamps="word", head=head)).words == done.segments[0].words
    default = both.post("/transcribe?timestamps=word", content=samples["en"].audio).json()
    assert spoken(default) == words["tdt"] != words["ctc"]


def test_the_command_line_writes_with_the_head_that_is_asked_for(cache, samples, both):
    command = [sys.executable, "-m", "server", "transcribe", str(samples["en"].path), "--format", "json", "--head"]
    run = subprocess.run([*command, "ctc", "--model", "toy-parakeet"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    body = both.post("/transcribe?head=ctc", content=samples["en"].audio).json()
    assert json.loads(run.stdout)["segments"] == body["segments"]
    refused = subprocess.run([*command, "ctc", "--model", "toy"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "head 'ctc' is not supported by toy" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"head": "rnnt"}, "head 'rnnt' is not supported by toy-parakeet; must be one of tdt, ctc."),
        ({"head": "ctc", "model": "toy"}, "head 'ctc' is not supported by toy, which has only one."),
    ],
)
def test_a_head_that_a_model_lacks_is_refused_by_name(both, samples, query, message):
    response = both.post("/transcribe", params=query, content=samples["en"].audio)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_task", "head")
    assert error["message"] == message


def test_silence_has_no_text_and_an_assumed_language(both):
    body = both.post("/transcribe", content=wav(np.zeros(3 * RATE, np.float32))).json()
    assert (body["text"], body["language"], body["language_source"]) == ("", "en", "default")


def test_the_command_line_writes_text_and_the_token_ids_of_each_segment(cache, samples, python):
    files = [str(samples[language].path) for language in ("en", "es")]
    command = [sys.executable, "-m", "server", "transcribe", *files, "--model", "toy-parakeet", "--timestamps", "word"]
    run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(line["text"], line["language"], line["language_source"]) for line in lines] == [
        (samples[language].text, language, "text") for language in ("en", "es")
    ]
    for line in lines:
        tokens = [token for segment in line["segments"] for token in segment["tokens"]]
        assert python.info.tokenizer.decode(tokens).strip() == line["text"]
    refused = subprocess.run([*command, "--target-language", "de"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "toy-parakeet does not translate" in refused.stderr


def test_python_gives_what_the_service_gives(python, both, samples):
    for language in LANGUAGES:
        done = python.transcribe(samples[language].path, timestamps="word")
        body = both.post("/transcribe?timestamps=word", content=samples[language].audio).json()
        del body["model"], body["timing"]
        assert done.to_dict("text") == body


def wav(sound: np.ndarray) -> bytes:
    """A WAV file of these samples."""
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV")
    return file.getvalue()
