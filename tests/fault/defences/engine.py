"""A model, or its process, that hangs or ends."""

from tests.fault.defences.defence import Defence, defence

_ENGINE = "server/engine/"

FAILURES: dict[str, tuple[Defence, ...]] = {
    "a model that cannot be loaded": (
        defence(
            "not even an exit while it is loaded ends the server",
            _ENGINE + "thread.py",
            "unit/test_watchdog.py::test_an_exit_while_the_model_is_loaded_does_not_end_the_event_loop",
            'error if isinstance(error, Exception) else RuntimeError(f"loading ended with {type(error).__name__}")',
            "error",
        ),
    ),
    "a model that hangs": (
        defence(
            "a watchdog notices",
            _ENGINE + "watchdog.py",
            "unit/test_watchdog.py::test_when_the_model_hangs_whoever_runs_or_waits_is_told_and_the_engine_has_failed",
            "self._on_hang(work)",
            "pass",
        ),
        defence(
            "a request that has waited too long gets an error",
            _ENGINE + "thread.py",
            "unit/test_watchdog.py::test_a_request_that_has_not_started_in_time_is_told_so_while_the_others_run_on",
            "timer = asyncio.get_running_loop().call_later(left_s, self._expire, request)",
            "timer = None if left_s else None",
        ),
        defence(
            "with a supervisor, a model that hangs ends the process",
            _ENGINE + "registry.py",
            "unit/test_engines.py::test_a_process_that_can_be_started_again_gives_up_a_model_that_hangs_at_once",
            'if self._on_lost and (is_given_up or failure.reason == "hang"):',
            "if self._on_lost and is_given_up:",
        ),
        defence(
            "a server without a sign of life is killed",
            "server/cli/supervise.py",
            "process/test_supervise.py::test_a_server_that_gives_no_sign_of_life_is_killed_and_started_again",
            "if silent_s > limit_s:",
            "if False:",
        ),
    ),
    "a model whose thread ends": (
        defence(
            "whatever ends the loop is a failure",
            _ENGINE + "thread.py",
            "unit/test_watchdog.py::test_whatever_ends_the_loop_fails_the_engine_and_everybody_is_told",
            "except BaseException as error:\n            self._fail(reason_for(error)",
            "except Exception as error:\n            self._fail(reason_for(error)",
        ),
        defence(
            "the model is loaded again",
            _ENGINE + "registry.py",
            "unit/test_engines.py::test_a_model_that_fails_is_loaded_again_ever_later_and_then_given_up",
            "is_given_up = model.attempts >= len(RELOAD_AFTER_S)",
            "is_given_up = model.attempts >= 0",
        ),
    ),
    "a process that dies": (
        defence(
            "its parent starts it again",
            "server/cli/supervise.py",
            "process/test_supervise.py::test_a_server_that_crashes_is_started_again_ever_later_and_told_why",
            "if self._stopping or code == 0:",
            "if self._stopping or code is not None:",
        ),
    ),
}
