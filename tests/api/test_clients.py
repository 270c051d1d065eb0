"""Real clients: curl, every supported audio format, and litellm."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import soundfile

from tests.environments import python_with
from tests.muxing import muxed

ROOT = Path(__file__).parents[2]
CURL = shutil.which("curl") or "curl"


def curl(*arguments: str, cwd: Path = ROOT) -> str:
    run = subprocess.run([CURL, "-sS", "--noproxy", "*", *arguments], capture_output=True, cwd=cwd, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.decode()


def test_curl_can_send_a_form_a_raw_body_and_a_chunked_body(toy, samples):
    sample, url = samples["en"], f"{toy.base_url}/transcribe?language=en&format=text"
    for options in (
        ["-F", f"file=@{sample.path}"],
        ["--data-binary", f"@{sample.path}"],
        ["-T", str(sample.path), "-X", "POST"],
        ["-H", "Transfer-Encoding: chunked", "--data-binary", f"@{sample.path}"],
        ["-F", f"file=@{sample.path}", "-H", "Expect: 100-continue"],
    ):
        assert curl(*options, url) == sample.text + "\n"
    assert curl("-F", f"file=@{sample.path}", "-F", "model=whisper-1", f"{toy.base_url}/v1/audio/transcriptions")


def test_the_accept_header_chooses_the_format_unless_the_request_names_one(toy, samples):
    audio, url = samples["en"].audio, "/transcribe?language=en"
    for accept, media_type in {
        "text/vtt": "text/vtt; charset=utf-8",
        "application/x-subrip, */*;q=0.1": "application/x-subrip; charset=utf-8",
        "text/plain;q=0.9, application/json;q=0.5": "text/plain; charset=utf-8",
        "image/png": "application/json",
        "*/*": "application/json",
        "text/event-stream": "text/event-stream; charset=utf-8",
    }.items():
        response = toy.post(url, content=audio, headers={"accept": accept})
        assert response.headers["content-type"] == media_type
    response = toy.post(f"{url}&format=json", content=audio, headers={"accept": "text/vtt"})
    assert response.headers["content-type"] == "application/json"


def test_the_native_stream_has_the_same_segments_as_its_final_answer(toy, samples):
    sample = samples["fr"]
    url = "/transcribe?language=fr&timestamps=word&stream=true"
    events = [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in (
            event.split("\n") for event in toy.post(url, content=sample.audio).text.strip().split("\n\n")
        )
    ]
    *segments, (last, done) = events
    assert last == "done"
    assert [name for name, _ in segments] == ["segment"] * len(segments)
    assert [segment for _, segment in segments] == done["segments"]
    assert done["text"] == sample.text
    assert done["timing"]["audio_s"] == pytest.approx(sample.duration, abs=0.01)


# (container, codec, rate): the formats that OpenAI's API accepts and those that browsers record.
FORMATS = [
    ("flac", "flac", 16000), ("mp3", "libmp3lame", 44100), ("mp4", "aac", 44100), ("ipod", "aac", 16000),
    ("ipod", "alac", 16000), ("ogg", "libopus", 48000), ("wav", "pcm_s16le", 48000), ("webm", "libopus", 48000),
    ("adts", "aac", 32000), ("mp3", "libmp3lame", 16000), ("fragmented", "aac", 48000), ("live webm", "libopus", 48000),
]  # fmt: skip


def recording(path: Path, container: str, codec: str, rate: int) -> bytes:
    """The recording re-encoded by PyAV in another format, in stereo."""
    sound, own_rate = soundfile.read(path, dtype="float32")
    frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
    frame.sample_rate = own_rate
    options = {"movflags": "frag_keyframe+empty_moov"} if container == "fragmented" else {}
    name = {"fragmented": "mp4", "live webm": "webm"}.get(container, container)
    seekable = container not in ("fragmented", "live webm")
    return muxed(frame, name, codec, rate, "stereo", seekable, options)


@pytest.mark.parametrize(("container", "codec", "rate"), FORMATS)
def test_every_format_gives_the_same_words(toy, samples, container, codec, rate):
    sample = samples["en"]
    file = recording(sample.path, container, codec, rate)
    # The file's name and type give no hint of its format.
    form = {"file": ("upload", file, "application/octet-stream")}
    response = toy.post("/v1/audio/transcriptions", files=form, data={"model": "whisper-1", "language": "en"})
    assert response.status_code == 200, response.text
    assert response.json()["text"] == sample.text


def test_litellm_gets_text_words_subtitles_and_an_error_it_understands(toy, samples):
    clients = ROOT / "tests" / "api" / "clients"
    python = python_with(clients / "requirements.txt", "litellm-client")
    command = [python, clients / "litellm_client.py", f"{toy.base_url}/v1", samples["en"].path]
    environment = os.environ | {"NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    plain, verbose, srt, refused = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert plain["text"] == verbose["text"] == samples["en"].text
    assert [word["word"] for word in verbose["words"]] == samples["en"].text.split()
    assert srt["text"].startswith("1\n00:00:00,")
    assert "Unsupported or damaged audio file" in refused["error"]


def test_a_recorded_request_of_litellm_is_answered(toy, samples):
    # litellm requests verbose_json on its own, names the file, and passes on fields it does not know.
    fields = {"model": "gpt-4o-transcribe", "response_format": "verbose_json", "user": "someone", "drop_params": "true"}
    form = {"file": ("audio.flac", samples["en"].audio, "audio/flac")}
    body = toy.post("/v1/audio/transcriptions", files=form, data=fields).json()
    assert body["text"] == samples["en"].text
    assert body["duration"] == pytest.approx(samples["en"].duration, abs=0.01)


def test_audio_longer_than_one_pass_is_transcribed_to_its_end(toy, samples):
    sound, rate = soundfile.read(samples["en"].path, dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, np.tile(np.concatenate([sound, np.zeros(rate, np.float32)]), 7), rate, format="FLAC")
    long = httpx.Client(base_url=toy.base_url, trust_env=False, timeout=300)
    with long:
        body = long.post("/transcribe?language=en&timestamps=segment", content=file.getvalue()).json()
    assert body["duration"] == pytest.approx(7 * (samples["en"].duration + 1), abs=0.1)
    assert body["text"].split().count("woman") == samples["en"].text.split().count("woman") * 7
    starts = [segment["start"] for segment in body["segments"]]
    assert starts == sorted(starts)
    assert starts[-1] > 40
