"""Which pass is next: live sessions go first, and files have their share. By a clock of its own; nothing sleeps."""

from collections import Counter

import numpy as np
import pytest

from model.task import Task
from server.engine.passes import Pass
from server.engine.waiting import BULK, INTERACTIVE, LIVE, PassQueue, Waiting

NOTHING = Pass(np.zeros(1, np.float32), (Task(),))


class Model:
    """Runs one pass after the other. ran: (priority, when it came, when it began), in order."""

    def __init__(self) -> None:
        self.queue = PassQueue()
        self.now = 0.0
        self.ran: list[tuple[int, float, float]] = []
        self.spent: Counter[int] = Counter()
        self._costs: dict[int, float] = {}

    def send(self, priority: int, cost_s: float) -> Waiting:
        request = Waiting(priority, len(self._costs), NOTHING, since=self.now)
        self._costs[request.number] = cost_s
        self.queue.add(request)
        return request

    def run_one(self) -> Waiting:
        request = self.queue.next()
        assert request
        self.queue.take(request)
        self.ran.append((request.priority, request.since, self.now))
        cost_s = self._costs[request.number]
        self.queue.charge(request, cost_s)
        self.spent[request.priority] += cost_s
        self.now += cost_s
        if not self.queue:
            self.queue.level()
        return request

    def run(self, until_s: float, costs: dict[int, float]) -> None:
        """Until then; whatever ends is sent again at once."""
        while self.now < until_s:
            done = self.run_one()
            self.send(done.priority, costs[done.priority])

    def waits(self, priority: int) -> list[float]:
        return [began - came for each, came, began in self.ran if each == priority]


@pytest.fixture
def model() -> Model:
    return Model()


def order(model: Model) -> list[int]:
    while model.queue:
        model.run_one()
    return [priority for priority, _, _ in model.ran]


def test_a_live_pass_goes_before_files_that_came_earlier(model):
    for priority in (BULK, INTERACTIVE, LIVE):
        model.send(priority, 0.1)
    assert order(model) == [LIVE, INTERACTIVE, BULK]


@pytest.mark.parametrize(("live_s", "file_s"), [(0.1, 1.0), (0.5, 1.5), (1.0, 0.1)])
def test_files_get_a_quarter_of_the_time_however_many_live_passes_wait(model, live_s, file_s):
    for _ in range(20):
        model.send(LIVE, live_s)
    for _ in range(2):
        model.send(INTERACTIVE, file_s)
    before = 0.0
    for until_s in range(30, 330, 30):
        model.run(until_s, {LIVE: live_s, INTERACTIVE: file_s})
        # In each half-minute, not only on the whole.
        share = (model.spent[INTERACTIVE] - before) / 30
        assert share == pytest.approx(0.25, abs=2 * max(live_s, file_s) / 30)
        before = model.spent[INTERACTIVE]


def test_files_have_all_the_time_that_live_passes_leave_and_those_wait_for_one_file_at_most(model):
    for _ in range(4):
        model.send(BULK, 1.0)
    due_s = 0.0
    while model.now < 200:
        if model.now >= due_s:
            model.send(LIVE, 0.5)
            due_s += 2.0
        if model.run_one().priority == BULK:
            model.send(BULK, 1.0)
    assert model.spent[LIVE] / model.now == pytest.approx(0.25, abs=0.01)
    assert max(model.waits(LIVE)) <= 1.0


def test_time_that_files_did_not_ask_for_is_not_made_up_for(model):
    """Live sessions had the model for a long time; a file that comes then gets its share and no more."""
    for _ in range(4):
        model.send(LIVE, 0.1)
    model.run(100, {LIVE: 0.1})
    for _ in range(4):
        model.send(INTERACTIVE, 0.5)
    model.run(120, {LIVE: 0.1, INTERACTIVE: 0.5})
    assert model.spent[INTERACTIVE] == pytest.approx(5.0, abs=0.6)


def test_files_that_had_the_model_alone_keep_their_share_when_live_passes_come(model):
    for _ in range(4):
        model.send(INTERACTIVE, 0.5)
    model.run(100, {INTERACTIVE: 0.5})
    for _ in range(4):
        model.send(LIVE, 0.1)
    model.run(120, {LIVE: 0.1, INTERACTIVE: 0.5})
    assert model.spent[LIVE] == pytest.approx(15.0, abs=1.6)


def test_nobody_has_a_claim_from_before_a_pause(model):
    model.send(INTERACTIVE, 10.0)
    model.run_one()
    for priority in (LIVE, INTERACTIVE):
        for _ in range(3):
            model.send(priority, 0.1)
    order(model)
    assert [priority for priority, _, _ in model.ran[1:4]] == [LIVE, INTERACTIVE, LIVE]


def test_a_short_file_is_not_held_up_by_live_passes_that_never_end(model):
    for _ in range(20):
        model.send(LIVE, 0.1)
    model.run(10, {LIVE: 0.1})
    for at_s in range(11, 31):
        model.send(INTERACTIVE, 0.2)
        model.run(at_s, {LIVE: 0.1, INTERACTIVE: 0.2})
        while len(model.queue) > 20:
            model.queue.remove(model.queue.files.passes[0])
    assert max(model.waits(INTERACTIVE)) <= 0.8


def test_files_do_not_join_between_the_steps_of_a_live_pass_before_it_is_their_turn(model):
    live, file = model.send(LIVE, 0.1), model.send(INTERACTIVE, 1.0)
    model.queue.take(live)
    assert model.queue.next(live_runs=True) is None
    assert model.queue.next(live_runs=False) is file
    model.queue.charge(live, 0.1)
    assert model.queue.next(live_runs=True) is file


def test_a_pass_that_left_the_queue_is_not_in_it(model):
    live, file = model.send(LIVE, 0.1), model.send(INTERACTIVE, 0.1)
    assert model.queue.remove(live)
    assert not model.queue.remove(live)
    assert model.queue.next() is file
    assert model.queue.clear() == [file]
    assert (len(model.queue), model.queue.next()) == (0, None)


def test_a_pass_knows_what_it_took(model):
    request = model.send(LIVE, 0.1)
    model.queue.charge(request, 0.25)
    model.queue.charge(request, 0.5)
    assert (request.model_s, model.queue.live.spent_s, model.queue.files.spent_s) == (0.75, 0.75, 0.0)
