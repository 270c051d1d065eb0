"""What surrounds a recording's pieces: its context, its language where nothing is said, and a file that is cut off."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

from model.task import Task
from server.audio.decode import Blocks
from server.engine.admission import Admission
from server.engine.passes import Pass, PassResult
from server.errors import RequestError, WaitedTooLong
from server.longform.transcribe import transcribe_recording
from server.longform.transcription import Transcription, language_source
from server.settings import Settings
from server.text.languages import language_pair
from tests.configs import canary_config

SETTINGS = Settings(_env_file=None)
SILENCE = np.zeros(16_000, np.float32)


class Silent:
    """An engine that is never asked, since nothing is said."""

    def __init__(self, *languages: str):
        tokenizer = SimpleNamespace(encode=lambda text, language: text.split())
        self.info = SimpleNamespace(config=canary_config(languages=languages), tokenizer=tokenizer)

    def check(self, task: Task) -> None:
        pass

    async def run(self, wanted: Pass, priority: int = 1) -> PassResult:
        raise AssertionError("silence needs no pass")


class CutOff(Blocks):
    """Blocks of a file whose end is missing."""

    def close(self) -> None:
        super().close()
        self.truncated = True


def blocks(closed: list[bool]):
    try:
        yield SILENCE
        yield SILENCE
    finally:
        closed.append(True)


async def transcribe(engine: Silent, task: Task, closed: list[bool] | None = None, **options) -> Transcription:
    closed = [] if closed is None else closed
    return await transcribe_recording(engine, blocks(closed), task, SETTINGS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("languages", "chosen"), [(("de", "en"), "en"), (("de", "fr"), "de")])
async def test_a_recording_without_speech_has_some_language_all_the_same(languages, chosen):
    done = await transcribe(Silent(*languages), Task("auto"))
    assert (done.text, done.language, done.target_language, done.duration) == ("", chosen, chosen, 2.0)
    assert language_source(Task("auto"), True, done) == "default"
    assert done.timing.total_s > 0


async def test_a_file_that_is_cut_off_gets_a_warning_and_says_truncated(monkeypatch):
    whole = await transcribe(Silent("en"), Task("en"))
    assert (whole.truncated, whole.warnings) == (False, ())
    assert "truncated" not in whole.to_dict("request")
    monkeypatch.setattr("server.longform.transcribe.Blocks", CutOff)
    done = await transcribe(Silent("en"), Task("en"))
    told = done.to_dict("request")
    message = "The audio file is cut off; the text ends where the file does."
    assert (told["truncated"], told["warnings"]) == (True, [{"code": "truncated", "message": message}])


async def test_a_recording_that_waited_too_long_is_not_read(monkeypatch):
    closed: list[bool] = []
    now = time.monotonic()
    with pytest.raises(WaitedTooLong):
        await transcribe(Silent("en"), Task("en"), closed, start_by=now - 1)
    assert closed == []
    await transcribe(Silent("en"), Task("en"), closed, start_by=now + 600)
    assert closed == [True]


async def test_a_recording_that_waits_for_its_turn_is_not_decoded(monkeypatch):
    monkeypatch.setattr("server.engine.admission.AHEAD", 0)
    admission = Admission(rows=1, max_waiting=10, max_waiting_s=100.0, waiting_pieces=lambda: 0)
    closed: list[bool] = []
    async with admission.turn(1.0):
        asked = transcribe(Silent("en"), Task("en"), closed, admission=admission, charged_s=2.0)
        waiting = asyncio.ensure_future(asked)
        while not (admission.waiting or waiting.done()):
            await asyncio.sleep(0.001)
        assert (closed, waiting.done()) == ([], False)
    await waiting
    assert closed == [True]


async def test_a_context_is_shortened_to_its_end_or_refused_before_anything_is_read():
    words = " ".join(f"word{i}" for i in range(300))
    closed: list[bool] = []
    with pytest.raises(RequestError, match="prompt has 300 tokens; at most 256 are supported"):
        await transcribe(Silent("en"), Task("en", context=words), closed)
    assert closed == []
    await transcribe(Silent("en"), Task("en", context=words), closed, shorten_context=True)
    assert closed == [True]


@pytest.mark.parametrize(
    ("language", "target_language", "pair"),
    [
        (None, None, ("auto", None)),
        ("", "", ("auto", None)),
        ("German", None, ("de", None)),
        ("de", "de-AT", ("de", None)),
        ("de", "english", ("de", "en")),
        (None, "en", ("auto", "en")),
    ],
)
def test_a_target_counts_only_where_it_is_not_the_spoken_language(language, target_language, pair):
    assert language_pair(language, target_language, "auto") == pair


def test_a_target_that_is_the_default_language_counts_as_little():
    assert language_pair(None, "fr", "french") == ("fr", None)


@pytest.mark.parametrize(("arguments", "param"), [(("xx", None), "language"), (("de", "xx"), "target_language")])
def test_an_unknown_language_names_its_field(arguments, param):
    with pytest.raises(RequestError) as caught:
        language_pair(*arguments, "auto")
    assert caught.value.param == param
