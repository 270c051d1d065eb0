"""Two minutes of toy speech, cut into pieces and joined: every word once, where it was spoken.

`python -m tests.long.measure` is the long version, with an hour and more ways of cutting.
"""

import pytest

from convert.hub import resolve
from model.loading import load
from model.task import Task
from server.engine.thread import Engine
from server.longform.transcribe import cutting_for, transcribe_audio
from tests.long.talk import normalized, talk


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    """The toy, converted."""
    return resolve("toy", dtype="float32", cache_dir=tmp_path_factory.mktemp("cache"))


async def test_two_minutes_have_every_word_once_and_in_its_place(toy_folder):
    said = talk("en", 120)
    engine = Engine(lambda: load(toy_folder, "float32"))
    await engine.start()
    try:
        result = await transcribe_audio(
            engine, said.waveform, Task("en", timestamps="word"), cutting=cutting_for(engine)
        )
    finally:
        await engine.stop()
    assert len(result.segments) > 10
    words = [word for segment in result.segments for word in segment.words]
    assert normalized([word.word for word in words]) == normalized(said.words)
    late_s = [abs(word.start - start) for word, (_, start, _) in zip(words, said.spoken, strict=True)]
    assert sorted(late_s)[len(late_s) * 95 // 100] < 0.2
