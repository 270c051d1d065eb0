"""A server under load whose model's thread or process fails: it recovers, and only what was in progress is lost.

`python -m tests.fault.recovery` prints how long that takes.
"""

import re

import pytest

from .recovery import FLOOR_S, IN_THREAD, OF_PROCESS, Outcome, recovery, restarts

REASONS = {"hang": "hang", "SystemExit": "crash", "MemoryError": "memory"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANARY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def check_losses(outcome: Outcome) -> None:
    """Sixteen clients lose at most the one request each that was in progress, and find a server again at once."""
    assert outcome.count("refused") == 0
    assert outcome.count("wrong") == 0
    assert 1 <= len(outcome.lost) <= 16
    # A hang is noticed only when the work has taken too long. Until then, requests join it.
    noticed_at = outcome.fault_at + 0.5 + (2 * FLOOR_S if outcome.fault == "hang" else 0.0)
    assert all(answer.sent < noticed_at for answer in outcome.lost)
    right_later = {
        answer.kind for answer in outcome.answers if answer.how == "right" and answer.sent > outcome.fault_at
    }
    assert right_later == {"file", "stream", "translation", "live"}


@pytest.mark.parametrize("fault", IN_THREAD)
async def test_a_model_whose_thread_fails_is_loaded_again_in_the_same_process(cache, fault):
    outcome = await recovery(fault, supervised=False, seconds=0.5)
    check_losses(outcome)
    assert {answer.how for answer in outcome.lost} <= {"503 model_failed", "event model_failed"}
    assert f'canary_model_failures_total{{model="toy",reason="{REASONS[fault]}"}} 1.0' in outcome.metrics
    assert 'canary_model_reloads_total{model="toy"} 1.0' in outcome.metrics
    assert outcome.log.count("is loading toy") == 1


@pytest.mark.parametrize("fault", ["hang", *OF_PROCESS])
async def test_a_supervised_server_that_hangs_or_dies_is_started_again_on_the_same_socket(cache, fault):
    assert restarts(fault, supervised=True)
    outcome = await recovery(fault, supervised=True, seconds=0.5)
    check_losses(outcome)
    reason = REASONS.get(fault, fault)
    assert f'canary_restarts_total{{reason="{reason}"}} 1.0' in outcome.metrics
    assert f"the server ended ({reason}); restart 1 in 0 s" in outcome.log
    assert outcome.log.count("is loading toy") == 2
    if fault == "hang":
        # Each was answered before the process ended: by an error, or a live session by a close that says why.
        restarting = "received 1012 (service restart); then sent 1012 (service restart)"
        assert {answer.how for answer in outcome.lost} <= {"503 model_failed", "event model_failed", restarting}
    assert len(set(re.findall(r"serving on (http://\S+)", outcome.log))) == 1
