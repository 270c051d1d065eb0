"""A little of `python -m tests.fault.fuzz`, and what counts as wrong there."""

import random
from collections import Counter

import pytest

from server.errors import AudioError
from tests.fault import fuzz
from tests.fault.fuzz import MESSAGES, Outcome, damaged, fuzz_media, fuzz_nemo, fuzz_websocket, recordings


def test_damaged_archives_are_converted_or_refused_in_a_line():
    (outcome,) = fuzz_nemo(60)
    assert outcome.wrong == []
    assert set(outcome.ends) == {"converted", "refused"}
    assert outcome.ends.total() == 60


def test_damaged_recordings_are_decoded_or_refused_in_a_line():
    outcomes = list(fuzz_media(20))
    assert [outcome.wrong for outcome in outcomes] == [[]] * len(recordings())
    ends = sum((outcome.ends for outcome in outcomes), start=Counter())
    assert set(ends) == {"decoded", "refused"}
    assert ends.total() == 20 * len(recordings())


def test_hostile_messages_end_their_own_session_alone_and_log_no_error():
    (outcome,) = fuzz_websocket(10 * MESSAGES)
    assert outcome.wrong == []
    assert outcome.ends.total() == 10


def test_what_neither_works_nor_is_refused_is_wrong(monkeypatch):
    ends = iter([ZeroDivisionError("by zero"), AudioError("in\ntwo lines"), AudioError("fine")])

    def fail(*_):
        raise next(ends)

    monkeypatch.setattr(fuzz, "recordings", lambda: {"wav": b"RIFF"})
    monkeypatch.setattr(fuzz, "decode", fail)
    (outcome,) = fuzz_media(3)
    assert outcome.wrong == ["0: ZeroDivisionError('by zero')", "1: 'in\\ntwo lines'"]
    assert outcome.ends == {"ZeroDivisionError": 1, "refused": 2}


def test_growth_is_counted_after_the_first_quarter():
    assert Outcome("", megabytes=[10.0, 90.0, 100.0, 130.0, 120.0, 110.0, 100.0, 100.0]).growth == 30.0


@pytest.mark.parametrize("length", [1, 10, 5000])
def test_damage_is_the_same_for_the_same_seed_and_never_nothing(length):
    content = bytes(range(256)) * 20
    changes = [damaged(content[:length], random.Random(seed)) for seed in range(50)]
    assert changes == [damaged(content[:length], random.Random(seed)) for seed in range(50)]
    assert len(set(changes)) > 10
    assert all(changes)
