"""`Canary` in Python gives what POST /transcribe gives, for the same audio and the same toy model."""

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from convert.errors import ConversionError
from model.task import TaskError
from server import Canary
from server.errors import AudioError, RequestError
from server.longform.transcribe import Progress
from server.longform.transcription import Transcription

RATE = 16_000
SILENT_HOUR = np.zeros(3600 * RATE, np.float32)


@pytest.fixture(scope="module")
def canary(cache) -> Iterator[Canary]:
    with Canary.from_pretrained("toy") as canary:
        yield canary


@pytest.fixture(scope="module")
def speech(samples) -> dict[str, np.ndarray]:
    """By language."""
    return {language: soundfile.read(sample.path, dtype="float32")[0] for language, sample in samples.items()}


@pytest.fixture(scope="module")
def looping(samples, speech) -> np.ndarray:
    """One word twelve times, which the model writes as often."""
    word = samples["en"].words[5]
    start, end = (round(at * RATE) for at in (word["start"] - 0.06, word["end"] + 0.06))
    return np.tile(speech["en"][start:end], 12)


@pytest.fixture(scope="module")
def changing(speech) -> np.ndarray:
    """A talk whose language changes twice."""
    pause = np.zeros(2 * RATE, np.float32)
    return np.concatenate([speech["en"], pause, speech["de"], pause, speech["fr"]])


def file_of(samples: np.ndarray, rate: int = RATE) -> bytes:
    """A lossless file of these samples."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def answer(done: Transcription) -> dict:
    """What an answer of the service has, without what differs from one run to the next."""
    return done.to_dict("")


def served(toy: httpx.Client, samples: np.ndarray, **query: object) -> dict:
    return served_file(toy, file_of(samples), **query)


def served_file(toy: httpx.Client, file: bytes, **query: object) -> dict:
    """The answer of the service, as `answer` has it."""
    response = toy.post("/transcribe", content=file, params=query)
    assert response.status_code == 200, response.text
    body = response.json()
    del body["model"], body["timing"]
    return body | {"language_source": ""}


def test_a_sentence_gets_the_same_answer_with_the_probability_of_its_language(canary, toy, speech):
    done = canary.transcribe(speech["de"], timestamps="word")
    assert answer(done) == served(toy, speech["de"], timestamps="word")
    assert done.detection is not None
    assert done.detection.language == done.language == "de"
    assert done.detection.probability > 0.99
    assert done.timing.total_s > done.timing.encode_s > 0


def test_a_loop_is_decoded_again_as_the_service_does(canary, toy, looping, cache):
    done = canary.transcribe(looping, "en")
    assert answer(done) == served(toy, looping, language="en")
    with Canary.from_pretrained("toy", loop_guard=False) as unguarded:
        looped = unguarded.transcribe(looping, "en")
    assert set(looped.text.split()) == {"houses"}
    assert done.text != looped.text


def test_a_silent_hour_has_no_text_and_no_passes(canary, toy):
    file = io.BytesIO()
    soundfile.write(file, SILENT_HOUR, RATE, format="FLAC")
    with ThreadPoolExecutor() as pool:
        body = pool.submit(served_file, toy, file.getvalue())
        done = canary.transcribe(SILENT_HOUR)
        assert answer(done) == body.result()
    assert (done.text, done.segments, done.duration, done.language) == ("", (), 3600.0, "en")
    assert (done.detection, done.timing.encode_s) == (None, 0.0)


def test_a_recording_that_changes_its_language_has_a_language_for_each_segment(canary, toy, changing):
    done = canary.transcribe(changing, timestamps="segment", detect_each=True)
    assert answer(done) == served(toy, changing, timestamps="segment", detect_each=True)
    assert {segment.language for segment in done.segments} == {"en", "de", "fr"}


def test_speech_that_gets_no_text_is_reported(canary, toy, speech, monkeypatch):
    monkeypatch.setattr("server.longform.pieces.placed", lambda *_: ())
    done = canary.transcribe(speech["en"], "en")
    assert answer(done) == served(toy, speech["en"], language="en")
    assert [end - start > 2 for start, end in done.uncovered] == [True] * len(done.uncovered)
    assert done.uncovered


def test_threads_share_one_model_and_each_gets_its_own_answer(canary, toy, speech):
    together = threading.Barrier(2)

    def ask(language: str) -> Transcription:
        together.wait(10)
        return canary.transcribe(speech[language])

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(ask, ("es", "fr")))
    assert [answer(done) for done in found] == [served(toy, speech[language]) for language in ("es", "fr")]


async def test_it_works_inside_a_running_event_loop(canary, toy, speech):
    expected = await asyncio.to_thread(served, toy, speech["fr"])
    assert answer(canary.transcribe(speech["fr"])) == expected
    assert answer(await asyncio.to_thread(canary.transcribe, speech["fr"])) == expected


class Pipe(io.RawIOBase):
    """A file that can be read only once, from its beginning to its end."""

    def __init__(self, data: bytes):
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._file.readinto(buffer)


FORMS: dict[str, Callable[[Path], object]] = {
    "a path": lambda path: path,
    "a path as text": str,
    "bytes": Path.read_bytes,
    "an open file": lambda path: io.BytesIO(path.read_bytes()),
    "a pipe": lambda path: io.BufferedReader(Pipe(path.read_bytes())),
    "samples": lambda path: soundfile.read(path)[0],
    "channels": lambda path: np.stack([soundfile.read(path, dtype="float32")[0]] * 2, axis=1),
    "samples with their rate": lambda path: soundfile.read(path, dtype="float32"),
}


@pytest.mark.parametrize("form", FORMS)
def test_audio_may_have_any_form(canary, samples, form):
    sample = samples["de"]
    assert canary.transcribe(FORMS[form](sample.path)).text == sample.text


def test_samples_of_another_rate_are_resampled_as_a_file_of_them_is(canary, toy, speech):
    import soxr

    slow = soxr.resample(speech["en"], RATE, 44_100)
    stereo = np.stack([slow, slow], axis=1)
    body = toy.post("/transcribe", content=file_of(stereo, 44_100)).json()
    done = canary.transcribe((stereo, 44_100))
    assert (done.text, round(done.duration, 3)) == (body["text"], body["duration"])


def test_a_list_is_answered_in_its_order_and_progress_says_which_audio_it_is_about(canary, samples):
    told: list[Progress] = []
    threads = set()

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        threads.add(threading.current_thread())

    languages = ["fr", "en", "de", "es"]
    found = canary.transcribe([samples[language].path for language in languages], on_progress=on_progress)
    assert [done.text for done in found] == [samples[language].text for language in languages]
    assert threads == {threading.current_thread()}
    for index, done in enumerate(found):
        mine = [progress for progress in told if progress.index == index]
        assert tuple(segment for progress in mine for segment in progress.segments) == done.segments
        assert all(progress.total_s == pytest.approx(done.duration, abs=0.001) for progress in mine)
    assert canary.transcribe([]) == []


def test_segments_come_as_they_are_ready_and_closing_the_iterator_ends_the_work(canary, speech):
    pause = np.zeros(2 * RATE, np.float32)
    talk = np.concatenate([part for _ in range(40) for part in (speech["en"], pause, speech["en"], pause)])
    file = io.BytesIO(file_of(talk))
    segments = canary.segments(file, "en", timestamps="segment")
    assert next(segments).text == "The woman sees ten new houses at school every day."
    segments.close()  # type: ignore[attr-defined]
    read = file.tell()
    assert read < len(file.getvalue()) / 2
    assert canary.transcribe(speech["fr"]).language == "fr"
    assert file.tell() == read
    short = speech["en"]
    assert tuple(canary.segments(short, "en")) == canary.transcribe(short, "en").segments


def test_an_error_in_the_progress_callback_ends_the_work_and_reaches_the_caller(canary, speech):
    with pytest.raises(ZeroDivisionError):
        canary.transcribe(speech["en"], "en", on_progress=lambda progress: 1 / 0)
    assert canary.transcribe(speech["en"], "en").text


def test_a_target_that_is_the_spoken_language_asks_for_a_transcript(canary, speech, samples):
    assert canary.transcribe(speech["de"], "german", "de-AT").text == samples["de"].text


def test_a_language_that_is_not_the_one_spoken_gets_a_warning(canary, toy, speech):
    done = canary.transcribe(speech["de"], "fr")
    (warning,) = done.warnings
    assert (warning.code, warning.details["detected_language"]) == ("language_mismatch", "de")
    assert served(toy, speech["de"], language="fr")["warnings"] == [warning.to_dict()]


def test_a_file_that_is_cut_off_gives_the_text_before_the_cut_and_a_warning(canary, toy, samples):
    file = samples["en"].audio
    cut_off = file[: len(file) * 3 // 4]
    done = canary.transcribe(cut_off, "en")
    assert done.truncated
    assert [warning.code for warning in done.warnings] == ["truncated"]
    assert done.text.startswith("The woman sees ten")
    assert answer(done) == served_file(toy, cut_off, language="en")
    assert answer(done)["truncated"] is True


def test_a_default_language_and_the_length_of_pieces_are_taken_from_the_settings(canary, cache, speech, monkeypatch):
    monkeypatch.setenv("CANARY_DEFAULT_LANGUAGE", "de")
    with Canary.from_pretrained("toy", pass_s=2.5) as chosen:
        done = chosen.transcribe(speech["de"])
    whole = canary.transcribe(speech["de"])
    assert (done.language, done.detection) == ("de", None)
    assert len(done.segments) > len(whole.segments) == 1


@pytest.mark.parametrize(
    ("audio", "arguments", "error", "message"),
    [
        (np.zeros(RATE, np.int16), {}, AudioError, r"Unsupported samples: int16 of shape \(16000,\)"),
        (np.zeros((2, RATE), np.float32), {}, AudioError, "The samples have 16000 channels"),
        (np.zeros(0, np.float32), {}, AudioError, "There are no samples"),
        ((np.zeros(RATE, np.float32), 0), {}, AudioError, "The sample rate is 0 Hz"),
        (np.full(RATE, np.nan, np.float32), {}, AudioError, "NaN"),
        (b"no sound", {}, AudioError, "Supported: wav, aiff"),
        (io.StringIO("text"), {}, TypeError, "audio must be a path, bytes, a file opened in binary mode"),
        (42, {}, TypeError, "not int"),
        ("/no/such/talk.wav", {}, FileNotFoundError, "/no/such/talk.wav"),
        (b"", {"language": "klingon"}, RequestError, "klingon"),
        (b"", {"language": "pl"}, TaskError, "'pl'"),
        (b"", {"language": "de", "target_language": "fr"}, TaskError, "de to fr"),
        (b"", {"timestamps": "letter"}, TaskError, "letter"),
    ],
)
def test_what_cannot_be_done_raises_in_the_callers_thread(canary, audio, arguments, error, message):
    with pytest.raises(error, match=message):
        canary.transcribe(audio, **arguments)


def test_one_bad_audio_in_a_list_is_named_by_its_place(canary, samples):
    with pytest.raises(AudioError) as caught:
        canary.transcribe([samples["en"].path, b"no sound"])
    assert caught.value.__notes__ == ["audio 1 of the list"]


def test_wrong_settings_and_models_are_refused_with_the_reason(cache):
    with pytest.raises(TypeError, match="unknown setting 'beams'"):
        Canary.from_pretrained("toy", beams=4)
    with pytest.raises(ValueError, match="pass_s"):
        Canary.from_pretrained("toy", pass_s=-1)
    with pytest.raises(ConversionError, match="no-such-model"):
        Canary.from_pretrained("no-such-model")


def test_a_closed_canary_refuses_and_what_it_was_doing_ends(cache, speech):
    others = {thread.ident for thread in threading.enumerate()}
    canary = Canary.from_pretrained("toy")
    begun = threading.Event()
    with ThreadPoolExecutor() as pool:
        long = np.tile(speech["en"], 200)
        work = pool.submit(canary.transcribe, long, "en", on_progress=lambda progress: begun.set())
        assert begun.wait(60)
        canary.close()
        with pytest.raises(RuntimeError, match="closed before its work was done"):
            work.result(30)
    canary.close()
    with pytest.raises(RuntimeError, match="This Canary is closed"):
        canary.transcribe(speech["en"])
    assert {"canary", "model"}.isdisjoint(t.name for t in threading.enumerate() if t.ident not in others)


@pytest.mark.parametrize(
    "last_line",
    [
        "pass",
        "next(canary.segments(np.tile(sound, 50), 'en'))",
        "segments = canary.segments(sound, 'en'); next(segments)",
    ],
)
def test_an_interpreter_that_ends_without_closing_ends_cleanly(cache, samples, last_line):
    script = f"""
import numpy as np, soundfile
from server import Canary
sound = soundfile.read({str(samples["en"].path)!r}, dtype="float32")[0]
canary = Canary.from_pretrained("toy")
print(canary.transcribe(sound).text)
{last_line}
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, samples["en"].text + "\n", "")
