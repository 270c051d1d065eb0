"""Sessions at once, with what their looks took and how late their words were, against a server of its own."""

import asyncio

import numpy as np
import pytest
import soundfile

from tests.archives import write_archive
from tests.live.measure import _print, paced_delays
from tests.live.overload import SAMPLE
from tests.live.paced import LEAD_S, WORD_S
from tests.live.random_archive import members
from tests.live.speaking import Shown, Speech, streamed
from tests.live.streams import Look, Noted, Session, Streams, most, table, watched
from tests.live.test_paced import SMALL


def looks(took_s: list[float], step_s: float = 0.4, last: bool = False) -> list[Look]:
    return [Look(took, took / 2, last, step_s) for took in took_s]


def streams(count: int, taken: list[Look], refused: int = 0, lags: tuple[float, ...] = ()) -> Streams:
    sessions = [Session([0.2, 0.3, 0.4], [0.8, 1.0, 2.0], lags) for _ in range(count)]
    return Streams(0.4, sessions, refused, Noted(taken, 2.0, 0.5))


def test_a_server_keeps_up_while_nearly_all_looks_are_done_in_time_and_none_is_told_to_be_behind():
    in_time = looks([0.1] * 95 + [0.9] * 5)
    assert streams(2, in_time).keeps_up
    assert not streams(2, looks([0.1] * 94 + [0.9] * 6)).keeps_up
    assert not streams(2, looks([0.1] * 94) + looks([0.1] * 6, step_s=0.5)).keeps_up
    assert not streams(2, in_time, refused=1).keeps_up
    assert not streams(2, in_time, lags=(2.1,)).keeps_up
    assert not streams(2, []).keeps_up
    # After the last look at a segment none is due. That it delays the other sessions' looks counts.
    assert streams(2, in_time + looks([0.9] * 50, last=True)).keeps_up


def test_the_most_sessions_are_those_before_the_first_number_that_is_too_much():
    fast, slow = looks([0.1] * 10), looks([0.5] * 10)
    assert most([streams(4, slow), streams(1, fast), streams(2, fast)]) == 2
    assert most([streams(1, fast), streams(2, slow), streams(3, fast)]) == 1
    assert most([streams(1, slow)]) == 0


def test_the_table_has_a_row_for_each_number_of_sessions():
    first = streams(1, looks([0.1, 0.2, 0.3]) + looks([0.6], last=True))
    rows = table([first, streams(2, looks([0.5]), refused=3, lags=(2.5,))]).splitlines()
    assert rows[2].strip("| ").split(" | ") == [
        *("1", "4", "0.20, 0.29, 0.30 s", "100.0%", "0.60, 0.60, 0.60 s", "0.40, 0.40, 0.40 s", "100.0%"),
        *("0.30, 0.39, 0.40 s", "1.00, 1.90, 2.00 s", "0.30 s", "0.0 s", "30%", "0.50", "yes"),
    ]
    assert rows[3].startswith("| 5 (3 refused) | 1 | 0.50, 0.50, 0.50 s | 0.0% | none |")
    assert rows[3].endswith("| 2.5 s | 12% | 0.50 | no |")
    assert len({row.count("|") for row in rows}) == 1


def test_a_session_without_a_right_word_is_reported_too(capsys):
    shown = Shown()
    message = {"type": "result", "segment_id": 1, "text": "Nothing", "stable_chars": 7, "is_final": True, "start": 0.0}
    shown.add(2.0, message)
    said = Speech(np.zeros(16_000, np.float32), [("The", 0.0, 0.4), ("dog", 0.5, 0.9)])
    _print("alignatt en", [said], [shown], [[]])
    told = capsys.readouterr().out
    assert "2 words, WER live 100.00%; to appearance unknown (no word is right), to commit unknown" in told


def test_delays_of_made_up_words_count_from_the_end_of_each(monkeypatch):
    shown = Shown()
    for at, stable, is_final in ((3.7, 0, False), (4.1, 3, False), (5.0, 7, True)):
        told = {"text": "one two", "stable_chars": stable, "is_final": is_final, "start": 2.5 if is_final else 2.0}
        shown.add(at, {"type": "result", "segment_id": 1, **told})
    appeared, certain = paced_delays(shown)
    ends = (2.0 + LEAD_S + WORD_S, 2.0 + LEAD_S + 2 * WORD_S)
    assert appeared == pytest.approx([3.7 - ends[0], 3.7 - ends[1]])
    assert certain == pytest.approx([4.1 - ends[0], 5.0 - ends[1]])


def test_speech_that_is_cut_has_whole_sentences_and_the_length_asked_for():
    words = [("No", 0.2, 0.5), ("dog.", 0.6, 1.2), ("Is", 1.3, 1.6), ("he?", 1.7, 2.0)]
    said = Speech(np.ones(48_000, np.float32), words)
    cut = said.until(1.8)
    assert (cut.duration_s, cut.words) == (1.8, words[:2])
    assert cut.waveform.sum() == 1.2 * 16_000
    assert said.waveform.all()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("streams") / "small.nemo", members(SMALL), prefix="")


async def test_two_sessions_at_once_show_paced_words_and_leave_their_looks(archive):
    waveform, _ = soundfile.read(SAMPLE, dtype="float32")
    said = Speech(waveform, [])
    with watched("--model", str(archive), cores=1, is_paced=True, cache=archive.parent) as server:
        with server.noting() as before:
            pass
        with server.noting() as noted:
            url, start = server.served.url, {"language": "en"}
            shown = await asyncio.gather(*(streamed(url, said, 1.0, start, wait_s) for wait_s in (0.0, 0.15)))
    assert before.looks == []
    # Each looks at least every 2 s.
    assert len(noted.looks) > said.duration_s
    assert all(0 < look.model_s <= look.took_s for look in noted.looks)
    assert {look.last for look in noted.looks} == {False, True}
    assert 0.05 < noted.cores < 1.2
    for each in shown:
        appeared, certain = paced_delays(each)
        assert len(appeared) == len(each.words) >= 0.5 * said.duration_s / WORD_S
        assert 0 < min(appeared) < 1
        assert all(appears <= stays for appears, stays in zip(appeared, certain, strict=True))
