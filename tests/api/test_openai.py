"""OpenAI's audio API, spoken by OpenAI's own Python SDK and by requests as other clients send them."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pysubs2
import pytest
import soundfile
import webvtt

# The SDK calls the whole route deprecated.
OLD_ROUTE = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


@pytest.fixture
def client(serve_mock) -> httpx.Client:
    return serve_mock(max_audio_s=10)


@pytest.fixture
def sdk() -> Iterator[Callable[..., openai.OpenAI]]:
    """OpenAI's SDK for a server; `seen` is called with every response."""
    opened: list[httpx.Client] = []

    def make(client: httpx.Client, seen: Callable[[httpx.Response], None] | None = None, **options: Any):
        http = httpx.Client(trust_env=False, event_hooks={"response": [seen] if seen else []})
        opened.append(http)
        return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", http_client=http, **options)

    yield make
    for http in opened:
        http.close()


@pytest.fixture
def python(client, sdk) -> openai.OpenAI:
    return sdk(client, max_retries=0)


@pytest.fixture
def spoken(toy, sdk) -> openai.OpenAI:
    """The toy behind the SDK."""
    return sdk(toy)


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_the_sdk_transcribes_real_speech_in_every_format(spoken, samples):
    sample = samples["en"]
    ask: Callable[..., Any] = lambda **options: spoken.audio.transcriptions.create(  # noqa: E731
        model="whisper-1", file=sample.path, language="en", **options
    )
    told = ask()
    assert told.text == sample.text
    assert told.usage.type == "duration"
    assert told.usage.seconds == -(-sample.duration // 1)
    assert ask(response_format="text") == sample.text + "\n"
    verbose = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert (verbose.text, verbose.language, verbose.task) == (sample.text, "english", "transcribe")
    assert verbose.duration == pytest.approx(sample.duration, abs=0.001)
    assert [word.word for word in verbose.words] == [word["word"] for word in sample.words]
    for word, known in zip(verbose.words, sample.words, strict=True):
        assert word.start == pytest.approx(known["start"], abs=0.25)
    assert " ".join(segment.text for segment in verbose.segments) == sample.text
    for cues in (
        [
            (cue.start / 1000, cue.end / 1000, cue.plaintext)
            for cue in pysubs2.SSAFile.from_string(ask(response_format="srt"))
        ],
        [(seconds(cue.start), seconds(cue.end), cue.text) for cue in webvtt.from_string(ask(response_format="vtt"))],
    ):
        assert " ".join(text for _, _, text in cues).split() == sample.text.split()
        assert cues[0][0] == pytest.approx(sample.words[0]["start"], abs=0.3)
        assert cues[-1][1] == pytest.approx(sample.words[-1]["end"], abs=0.3)


def test_the_sdk_streams_deltas_that_together_are_the_text(spoken, samples):
    sample = samples["de"]
    events = list(
        spoken.audio.transcriptions.create(model="gpt-4o-transcribe", file=sample.path, language="de", stream=True)
    )
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == sample.text
    deltas = [event.delta for event in events[:-1] if event.type == "transcript.text.delta"]
    assert "".join(deltas) == sample.text
    assert len(deltas) == len(events) - 1


@OLD_ROUTE
def test_the_sdk_translates(spoken, samples):
    sample = samples["de"]
    told = spoken.audio.translations.create(model="whisper-1", file=sample.path, extra_body={"language": "de"})
    assert told.text == sample.translations["en"]
    told = spoken.audio.translations.create(
        model="whisper-1",
        file=samples["en"].path,
        response_format="verbose_json",
        extra_body={"language": "english", "to_language": "de-DE"},
    )
    assert (told.text, told.language) == (samples["en"].translations["de"], "german")


def test_a_language_that_is_not_given_is_found_out(spoken, samples):
    for language in ("en", "de", "es", "fr"):
        sample = samples[language]
        told = spoken.audio.transcriptions.create(model="whisper-1", file=sample.path, response_format="verbose_json")
        assert (told.text, told.model_extra["languages"]) == (sample.text, [{"code": language}])


def test_the_sdk_lists_the_models_and_asks_for_one(spoken):
    listed = spoken.models.list().data
    assert [(model.id, model.object, model.owned_by) for model in listed] == [("toy", "model", "canary-server")]
    assert spoken.models.retrieve("toy") == listed[0]
    with pytest.raises(openai.NotFoundError, match="must be one of toy"):
        spoken.models.retrieve("nvidia/canary-1b-v2")


@pytest.mark.parametrize(
    ("options", "kind", "code", "said"),
    [
        (
            {"language": "pl"},
            openai.BadRequestError,
            "unsupported_language",
            "not supported by mock; must be one of en, de, fr",
        ),
        ({"language": "klingon"}, openai.BadRequestError, "invalid_request", "is not supported; must be one of bg, cs"),
        (
            {"response_format": "diarized_json"},
            openai.BadRequestError,
            "invalid_request",
            "must be one of json, text, srt",
        ),
        (
            {"timestamp_granularities": ["letter"]},
            openai.BadRequestError,
            "invalid_request",
            "timestamp_granularities: 'letter' is not valid; must be one of segment, word",
        ),
        ({"model": "../../etc/passwd"}, openai.NotFoundError, "model_not_found", "must be one of mock"),
        ({"model": "someone/else"}, openai.NotFoundError, "model_not_found", "must be one of mock"),
        ({"file": b"\0" * 1024}, openai.BadRequestError, "invalid_audio", "Supported: wav, aiff, caf, flac"),
        ({"file": "long"}, openai.BadRequestError, "audio_too_long", "the limit is 10 s"),
    ],
)
def test_the_sdk_raises_what_its_users_expect(python, wav, options, kind, code, said):
    options = {"model": "whisper-1", "file": wav(), **options}
    if options["file"] == "long":
        options["file"] = wav(11)
    with pytest.raises(kind) as raised:
        python.audio.transcriptions.create(**options)
    assert raised.value.code == code
    assert said in raised.value.message
    assert raised.value.request_id


@OLD_ROUTE
def test_a_pair_that_is_not_translated_is_named(python, wav):
    with pytest.raises(openai.BadRequestError, match="does not translate de to fr") as raised:
        python.audio.translations.create(
            model="whisper-1", file=wav(), extra_body={"language": "de", "target_language": "fr"}
        )
    assert (raised.value.code, raised.value.param) == ("unsupported_language_pair", "target_language")


def test_the_sdk_comes_back_after_a_503_when_it_was_told_to(serve_mock, sdk, mock, wav):
    client = serve_mock(max_queue=1)
    mock.gate.clear()
    busy = [threading.Thread(target=lambda: client.post("/transcribe", content=wav())) for _ in range(2)]
    busy[0].start()
    assert mock.entered.wait(10)
    busy[1].start()
    while client.get("/health").json()["waiting"] < 1:
        pass
    statuses: list[int] = []

    def note(response: httpx.Response) -> None:
        statuses.append(response.status_code)
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) > 0
            response.headers["retry-after-ms"] = "200"  # the test need not wait as long
            mock.gate.set()

    patient = sdk(client, note, max_retries=2)
    told = patient.audio.transcriptions.create(model="whisper-1", file=wav(), language="en")
    assert told.text == "1 s & <none>."
    assert statuses[0] == 503
    assert statuses[-1] == 200
    for thread in busy:
        thread.join(30)


def test_the_sdk_does_not_repeat_what_would_only_fail_again(client, sdk, wav):
    statuses: list[int] = []
    stubborn = sdk(client, lambda response: statuses.append(response.status_code), max_retries=2)
    with pytest.raises(openai.InternalServerError):
        stubborn.audio.transcriptions.create(model="whisper-1", file=wav(level=0.95), language="en")
    assert statuses == [500]


def test_an_error_midway_is_an_event(serve_mock, samples):
    client = serve_mock()
    # some minutes of quiet speech, then what the mock fails on
    speech, rate = soundfile.read(samples["en"].path, dtype="float32")
    speech = np.tile(speech / np.abs(speech).max(), 8)
    file = io.BytesIO()
    soundfile.write(file, np.concatenate([speech * 0.5, speech]), rate, format="WAV", subtype="FLOAT")
    data = {"stream": "true", "language": "en"}
    response = client.post("/v1/audio/transcriptions", files={"file": file.getvalue()}, data=data)
    assert response.status_code == 200
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert events[0]["type"] == "transcript.text.delta"
    assert events[-1]["error"]["code"] == "transcription_failed"
    assert events[-1]["error"]["request_id"] == response.headers["x-request-id"]
    assert "0xdeadbeef" not in response.text


def test_an_error_before_the_first_event_has_its_own_status(client, wav):
    data = {"stream": "true", "language": "en"}
    for file, status in ((wav(level=0.95), 500), (b"junk", 400), (wav(11), 400)):
        assert client.post("/v1/audio/transcriptions", files={"file": file}, data=data).status_code == status


def form(*fields: tuple[str, str]) -> list[tuple[str, tuple[None, str]]]:
    return [(name, (None, value)) for name, value in fields]


def test_fields_are_taken_as_clients_write_them(client, wav):
    # openai-node and curl users: bare and bracketed names, objects as keys, JSON as text, empty fields, unknown ones
    parts: Any = [
        ("file", ("upload", wav(), "application/octet-stream")),
        *form(
            ("model", "gpt-4o-mini-transcribe"),
            ("language", ""),
            ("prompt", ""),
            ("temperature", "0"),
            ("response_format", "verbose_json"),
            ("timestamp_granularities[]", "segment"),
            ("timestamp_granularities", "word"),
            ("include[]", "logprobs"),
            ("chunking_strategy[type]", "server_vad"),
            ("chunking_strategy[threshold]", "0.5"),
            ("chunking_strategy", '{"type":"server_vad"}'),
            ("known_speaker_names[]", "Ann"),
            ("keywords[]", "Canary"),
            ("stream", "false"),
            ("vad_filter", "true"),
        ),
    ]
    response = client.post("/v1/audio/transcriptions", files=parts)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["text"] == "1 s & <word>."
    assert [word["word"] for word in body["words"]] == ["1", "s", "&", "<word>."]
    assert body["segments"][0]["words"] == body["words"]


def test_every_segment_of_verbose_json_has_every_field_and_none_is_null(client, wav):
    body = client.post(
        "/v1/audio/transcriptions", files={"file": wav()}, data={"response_format": "verbose_json", "language": "de"}
    ).json()
    assert body["language"] == "german"
    assert body["languages"] == [{"code": "de"}]
    assert "words" not in body
    numbers = ("id", "seek", "start", "end", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
    for segment in body["segments"]:
        assert all(isinstance(segment[name], int | float) for name in numbers)
        assert isinstance(segment["text"], str)
        assert isinstance(segment["tokens"], list)


@pytest.mark.parametrize(
    ("response_format", "media_type"),
    [
        ("json", "application/json"),
        ("verbose_json", "application/json"),
        ("text", "text/plain; charset=utf-8"),
        ("srt", "application/x-subrip; charset=utf-8"),
        ("vtt", "text/vtt; charset=utf-8"),
    ],
)
def test_each_format_has_its_media_type(client, wav, response_format, media_type):
    response = client.post("/v1/audio/transcriptions", files={"file": wav()}, data={"response_format": response_format})
    assert response.headers["content-type"] == media_type


def test_open_webui_and_langchain_are_understood_as_they_send(client, wav):
    # Open WebUI: model, language of the browser, file name and type as recorded; it asks again without language
    webui = {"files": {"file": ("recording.webm", wav(), "video/webm")}, "data": {"model": "whisper-1"}}
    assert client.post("/v1/audio/transcriptions", **webui).json()["text"] == "1 s & <none>."
    webui["data"]["language"] = "xx"
    assert client.post("/v1/audio/transcriptions", **webui).status_code == 400
    # LangChain's OpenAI Whisper parser: a named file, temperature and format always there
    langchain = {"model": "whisper-1", "response_format": "json", "temperature": "0.0", "prompt": "", "language": ""}
    parts = {"file": ("part_0.mp3", wav(), "audio/mpeg")}
    assert client.post("/v1/audio/transcriptions", files=parts, data=langchain).json()["text"] == "1 s & <none>."


def test_a_junk_file_of_a_connection_test_is_a_400(client):
    # VoiceInk posts 1 KiB of zeros and takes 200, 400, 415 and 422 for "working"
    response = client.post("/v1/audio/transcriptions", files={"file": ("test.wav", b"\0" * 1024, "audio/wav")})
    assert response.status_code == 400


def test_streams_are_server_sent_events(client, wav):
    with client.stream(
        "POST", "/v1/audio/transcriptions", files={"file": wav()}, data={"stream": "true", "language": "en"}
    ) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        response.read()
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert events == [
        {"type": "transcript.text.delta", "delta": "1 s & <none>."},
        {"type": "transcript.text.done", "text": "1 s & <none>."},
    ]
