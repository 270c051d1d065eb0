"""More work than the model has time for."""

from tests.fault.defences.defence import Defence, defence

_WEB = "server/web/"
_ENGINE = "server/engine/"

LOAD: dict[str, tuple[Defence, ...]] = {
    "a queue without end": (
        defence(
            "limit on how many pieces and recordings wait",
            _ENGINE + "admission.py",
            "unit/test_admission.py::test_no_more_are_admitted_than_may_wait",
            "if count >= self._max_waiting:",
            "if False:",
        ),
        defence(
            "limit on the seconds that wait",
            _ENGINE + "admission.py",
            "unit/test_admission.py::test_seconds_that_wait_are_limited_and_the_last_recording_may_go_beyond",
            "elif self.waiting_s >= self._max_waiting_s:",
            "elif False:",
        ),
    ),
    "ten times the load that fits": (
        defence(
            "no audio is decoded before its turn",
            "server/longform/transcribe.py",
            "unit/test_recording.py::test_a_recording_that_waits_for_its_turn_is_not_decoded",
            "async with admission.turn(charged_s, start_by) if admission else nullcontext() as turn:",
            "async with nullcontext() as turn:",
        ),
        defence(
            "a full queue refuses before a body is read",
            _WEB + "app.py",
            "api/test_native.py::test_a_full_line_is_a_503_that_says_when_to_come_back",
            "    app.add_middleware(Room, engines=engines)\n",
            "",
        ),
        defence(
            "retry-after is what waits, by the measured speed",
            _ENGINE + "admission.py",
            "unit/test_admission.py::test_retry_after_is_what_waits_divided_by_the_measured_speed",
            "return round(min(MAX_RETRY_S, max(1.0, backlog_s / self._speed.now)))",
            "return 5 if backlog_s else 1",
        ),
        defence(
            "retry-after of too many requests counts what waits",
            _WEB + "middleware.py",
            "api/test_operations.py::test_a_request_over_the_limit_of_connections_is_told_when_the_work_before_it_is_done",
            "max(RETRY_AFTER_S, self._backlog_s())",
            "RETRY_AFTER_S",
        ),
        defence(
            "files have their share beside live sessions",
            _ENGINE + "waiting.py",
            "unit/test_waiting.py::test_files_get_a_quarter_of_the_time_however_many_live_passes_wait",
            "return min(waiting, key=lambda lane: lane.tag_s).passes[0] if waiting else None",
            "return waiting[0].passes[0] if waiting else None",
        ),
        defence(
            "an encoding goes on, however many looks go first",
            _ENGINE + "thread.py",
            "unit/test_engine.py::test_looks_go_first_between_the_layers_of_a_files_encoding_one_group_at_a_time",
            "if looks := self._admit(batcher, only_looks=True):",
            "while looks := self._admit(batcher, only_looks=True):",
        ),
        defence(
            "a live session that the model has no time for is refused",
            "server/live/capacity.py",
            "live/test_capacity.py::test_sessions_are_admitted_while_all_of_them_can_look_at_the_widest_step",
            "if self._seats and self.load + self.load_of_one > LIVE_SHARE:",
            "if False:",
        ),
    ),
}
