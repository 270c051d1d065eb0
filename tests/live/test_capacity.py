"""How often sessions look and how many there may be, by a clock that only moves when it is told to."""

import numpy as np
import pytest

from server.errors import TooManySessions
from server.live.capacity import LiveCapacity, LookCost, Seat
from server.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def capacity(clock) -> LiveCapacity:
    return LiveCapacity(clock=clock)


def speak(capacity: LiveCapacity, clock: Clock, *seats: Seat, look_s: float, seconds: float) -> None:
    """Each session looks at every step of its own, and the model does nothing else meanwhile."""
    end = clock.now + seconds
    while clock.now < end:
        took_s = look_s * len(seats)
        step_s = max(took_s, *(seat.step_s for seat in seats))
        clock.now += step_s
        for seat in seats:
            seat.note(took_s, LookCost(look_s, step_s, last=False))


def refusal(capacity: LiveCapacity, seats: list[Seat]) -> TooManySessions | None:
    """Why there is no seat for one more session; None if it got one."""
    try:
        seats.append(capacity.take())
    except TooManySessions as refused:
        return refused
    return None


def test_a_session_that_waits_for_nobody_keeps_its_step(capacity, clock):
    seat = capacity.take()
    speak(capacity, clock, seat, look_s=0.3, seconds=10)
    assert seat.step_s == 0.4


def test_a_session_whose_looks_wait_widens_its_step_and_narrows_it_again(capacity, clock):
    seat = capacity.take()
    for _ in range(20):
        seat.note(0.5, LookCost(0.1, 0.4, last=False))
    # As long as a look takes, and once more what others had of it.
    assert seat.step_s == pytest.approx(0.9, abs=0.01)
    steps = []
    for _ in range(10):
        seat.note(0.1, LookCost(0.1, 0.4, last=False))
        steps.append(seat.step_s)
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == 0.4


def test_one_long_wait_hardly_widens_the_step(capacity):
    seat = capacity.take()
    for _ in range(5):
        seat.note(0.1, LookCost(0.1, 0.4, last=False))
    seat.note(1.0, LookCost(0.1, 0.4, last=False))
    assert 0.4 < seat.step_s < 0.7


def test_the_long_last_look_of_a_segment_does_not_widen_the_step_of_the_next_one(capacity):
    seat = capacity.take()
    for _ in range(5):
        seat.note(0.1, LookCost(0.1, 0.4, last=False))
        seat.note(2.0, LookCost(1.0, 0.4, last=True))
    assert seat.step_s == 0.4


def test_a_step_is_never_wider_than_the_widest(capacity):
    seat = capacity.take()
    for _ in range(20):
        seat.note(60.0, LookCost(0.1, 60.0, last=False))
    assert seat.step_s == 2.0


def test_a_step_that_was_asked_to_be_wide_stays_as_wide():
    seat = LiveCapacity(step_s=3.0, widest_step_s=2.0).take()
    for _ in range(5):
        seat.note(0.1, LookCost(0.1, 3.0, last=False))
    assert seat.step_s == 3.0


def test_steps_settle_at_what_the_model_can_do_and_looks_wait_half_as_long_as_they_would(clock):
    """A model that runs one look at a time, and eight sessions that need twice of it at the step asked for.

    At that step each look would wait for the seven others, and take 0.8 s.
    """
    capacity, look_s = LiveCapacity(clock=clock), 0.1
    seats = [capacity.take() for _ in range(8)]
    due = {seat: 0.05 * i for i, seat in enumerate(seats)}
    looked, free_at, took = dict.fromkeys(seats, 0.0), 0.0, []
    while clock.now < 120:
        seat = min(due, key=lambda each: due[each])
        begin = max(due[seat], free_at)
        clock.now = free_at = begin + look_s
        took.append(clock.now - due[seat])
        seat.note(took[-1], LookCost(look_s, due[seat] - looked[seat], last=False))
        looked[seat] = due[seat]
        due[seat] = max(clock.now, due[seat] + seat.step_s)
    assert all(0.75 <= seat.step_s <= 0.95 for seat in seats), [seat.step_s for seat in seats]
    assert np.mean(took[-100:]) == pytest.approx(0.45, abs=0.05)


def test_before_looks_were_measured_sessions_are_admitted_up_to_the_limit(capacity):
    for _ in range(capacity.max_sessions):
        capacity.take()
    with pytest.raises(TooManySessions, match=r"Session limit \(32\) reached"):
        capacity.take()


def test_sessions_are_admitted_while_all_of_them_can_look_at_the_widest_step(capacity, clock):
    """A look takes 0.23 s, every 2 s: six such sessions need 69 % of the time, and seven 80 %."""
    seats = [capacity.take()]
    speak(capacity, clock, *seats, look_s=0.23, seconds=60)
    while refusal(capacity, seats) is None:
        speak(capacity, clock, *seats, look_s=0.23, seconds=60)
        assert capacity.load == pytest.approx(0.115 * len(seats), rel=0.1)
    assert len(seats) == 6
    assert f"(6 sessions need {capacity.load:.0%} of its time, limit 75%)" in str(refusal(capacity, seats))


def test_sessions_that_come_soon_after_each_other_count_before_they_have_looked(capacity, clock):
    seats = [capacity.take()]
    speak(capacity, clock, *seats, look_s=0.23, seconds=60)
    while refusal(capacity, seats) is None:
        clock.now += 1.0
    assert len(seats) == 6


def test_sessions_that_were_admitted_before_anything_was_measured_count_as_soon_as_it_is(capacity, clock):
    seats = [capacity.take() for _ in range(8)]
    speak(capacity, clock, seats[0], look_s=0.23, seconds=4)
    assert capacity.load == pytest.approx(8 * 0.115, rel=0.1)
    assert refusal(capacity, seats)


def test_the_first_looks_tell_nothing_since_they_warm_the_model_up(capacity):
    seat = capacity.take()
    for look_s in (30.0, 5.0, 0.1, 0.1, 0.1):
        seat.note(look_s, LookCost(look_s, 0.4, last=False))
    assert capacity.load_of_one == 0.0
    seat.note(0.1, LookCost(0.1, 0.4, last=False))
    assert capacity.load_of_one == pytest.approx(0.05)


def test_one_session_is_admitted_however_slow_the_model_is(capacity, clock):
    seat = capacity.take()
    speak(capacity, clock, seat, look_s=10.0, seconds=120)
    assert refusal(capacity, [])
    capacity.give_back(seat)
    assert capacity.take()


def test_a_seat_that_is_given_back_has_room_for_another_at_once(capacity, clock):
    seats = [capacity.take() for _ in range(2)]
    speak(capacity, clock, *seats, look_s=0.6, seconds=60)
    assert refusal(capacity, [])
    capacity.give_back(seats.pop())
    assert refusal(capacity, seats) is None


def test_a_session_in_which_nobody_speaks_needs_less_and_less(capacity, clock):
    seats = [capacity.take() for _ in range(2)]
    speak(capacity, clock, *seats, look_s=0.6, seconds=60)
    assert capacity.load == pytest.approx(0.6, rel=0.1)
    clock.now += 120
    assert capacity.load < 0.02
    assert capacity.load_of_one == pytest.approx(0.3, rel=0.02)
    assert refusal(capacity, seats) is None


def test_a_session_that_is_silent_for_half_of_the_time_needs_half_as_much(capacity, clock):
    seat = capacity.take()
    for _ in range(100):
        speak(capacity, clock, seat, look_s=0.2, seconds=2)
        clock.now += 2
    assert capacity.load == pytest.approx(0.05, rel=0.1)
    assert capacity.load_of_one == pytest.approx(0.1, rel=0.02)


def test_the_last_look_of_a_segment_counts_in_full_since_it_comes_at_any_step(capacity, clock):
    """Turns of one second, every four seconds: two looks at the narrow step, and one at the end."""
    seat = capacity.take()
    for _ in range(100):
        for last, new_s in ((False, 0.4), (False, 0.4), (True, 0.2)):
            clock.now += new_s
            seat.note(0.2, LookCost(0.2, new_s, last))
        clock.now += 3.0
    assert capacity.load_of_one == pytest.approx(0.2 + 2 * 0.2 * 0.2, rel=0.05)
    assert capacity.load == pytest.approx((0.2 + 2 * 0.2 * 0.2) / 4.0, rel=0.1)


def test_looks_that_are_further_apart_than_the_widest_step_count_as_all_that_there_should_be(capacity, clock):
    """The model is too slow for its sessions already: eight of them need a fifth of its time each."""
    seats = [capacity.take() for _ in range(8)]
    speak(capacity, clock, *seats, look_s=0.4, seconds=60)
    assert capacity.load == pytest.approx(8 * 0.2, rel=0.1)


def test_audio_that_comes_faster_than_it_is_spoken_needs_no_more_than_at_its_own_pace(capacity, clock):
    """An hour of speech at eight times its pace."""
    seat = capacity.take()
    for _ in range(1800):
        clock.now += 0.25
        seat.note(0.2, LookCost(0.2, 2.0, last=False))
    assert capacity.load == pytest.approx(0.1, rel=0.05)


def test_the_settings_say_how_many_and_how_wide():
    settings = Settings(_env_file=None, max_live_sessions=3, live_step_s=0.2, max_live_step_s=1.0)
    capacity = LiveCapacity.from_settings(settings)
    assert (capacity.max_sessions, capacity.step_s, capacity.widest_step_s) == (3, 0.2, 1.0)
    assert capacity.take().step_s == 0.2
