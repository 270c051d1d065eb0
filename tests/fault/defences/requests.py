"""Requests and connections: who may send them, how large and how slow they may be, what answers say."""

from tests.fault.defences.defence import Defence, defence

_WEB = "server/web/"
_ENGINE = "server/engine/"

REQUESTS: dict[str, tuple[Defence, ...]] = {
    "one way in without the limits": (
        defence(
            "every route decodes within the limits",
            _WEB + "requests.py",
            "api/test_abuse.py::test_decoding_a_small_file_with_hours_of_audio_stops_at_the_limit_on_every_route",
            "decode_blocks(file, limits),",
            "decode_blocks(file),",
        ),
        defence(
            "live audio is decoded within the limits",
            "server/live/container.py",
            "live/test_container.py::test_the_limits_for_files_hold_here_too",
            "replace(limits, max_s=math.inf)",
            "replace(AudioLimits(), max_s=math.inf)",
        ),
        defence(
            "limit on the bytes of a body",
            _WEB + "uploads.py",
            "api/test_native.py::test_a_body_over_the_cap_is_refused_while_it_is_read_whether_or_not_its_length_is_said",
            "if size > self.max_bytes:",
            "if False:",
        ),
        defence(
            "limit on the bytes of a websocket message",
            "server/cli/serve.py",
            "live/test_captions.py::test_a_message_over_the_cap_closes_the_connection_and_nothing_else",
            "ws_max_size=int(settings.max_message_mb * 1e6)",
            "ws_max_size=1 << 40",
        ),
    ),
    "a size that is checked only after everything is read": (
        defence(
            "reading stops at the limit",
            _WEB + "uploads.py",
            "api/test_native.py::test_a_sender_who_never_ends_is_answered_and_cut_off",
            "self._check(max(upload.seen, upload.announced))",
            "pass",
            "            self._check(upload.seen)\n",
            "            if ended:\n                self._check(upload.seen)\n",
        ),
    ),
    "huge and slow forms": (
        defence(
            "python-multipart from 0.0.26",
            "pyproject.toml",
            "unit/test_constraints.py::test_versions_with_known_vulnerabilities_are_not_installed",
            '"python-multipart>=0.0.26"',
            '"python-multipart>=0.0.20"',
        ),
        defence(
            "limits on a form's fields and files",
            _WEB + "requests.py",
            "api/test_abuse.py::test_a_form_has_at_most_a_hundred_fields_and_one_file",
            "max_files=1, max_fields=100",
            "max_files=1_000_000, max_fields=1_000_000",
        ),
    ),
    "uploads that take forever": (
        defence(
            "lowest rate of a body",
            _WEB + "uploads.py",
            "api/test_connections.py::test_a_body_that_falls_below_the_lowest_rate_is_given_up_after_a_window",
            "if is_late or self.seen - self._window_seen < SLOWEST * (now - self._window_began):",
            "if is_late:",
        ),
        defence(
            "a body's deadline",
            _WEB + "uploads.py",
            "api/test_connections.py::test_a_body_has_a_deadline_that_grows_with_its_size",
            "is_late = self.age_s >= PATIENCE_S + self._size / AVERAGE",
            "is_late = False",
            "min(self._window_began + WINDOW_S, self._began + PATIENCE_S + self._size / AVERAGE)",
            "self._window_began + WINDOW_S",
        ),
        defence(
            "the slowest upload is ended to make room",
            _WEB + "middleware.py",
            "api/test_connections.py::test_260_slow_uploads_shut_nobody_out",
            " and not self._uploads.end_slowest():",
            ":",
        ),
        defence(
            "health checks are answered whatever the load",
            _WEB + "middleware.py",
            "api/test_connections.py::test_open_websockets_count_towards_the_limit_of_requests",
            'is_counted = scope["path"] not in PROBES',
            "is_counted = True",
        ),
        defence(
            "a connection on which nothing was sent is closed silently",
            _WEB + "protocols.py",
            "api/test_connections.py::test_a_connection_on_which_nothing_was_sent_is_closed_without_an_answer",
            "if not self._head_has_begun:",
            "if False:",
        ),
    ),
    "what the HTTP server does not limit by itself": (
        defence(
            "limit on connections",
            "server/cli/serve.py",
            "api/test_connections.py::test_a_connection_over_the_limit_is_refused_with_the_usual_error_body_and_health_answers",
            "limit_concurrency=settings.max_connections + 64",
            "limit_concurrency=None",
        ),
        defence(
            "limit on the time to stop",
            "server/cli/serve.py",
            "api/test_operations.py::test_a_request_that_does_not_end_does_not_hold_up_the_stop",
            "timeout_graceful_shutdown=settings.shutdown_s",
            "timeout_graceful_shutdown=None",
        ),
    ),
    "a web page that talks to this machine": (
        defence(
            "only known hosts",
            _WEB + "security.py",
            "api/test_security.py::test_a_foreign_host_is_refused_on_every_path",
            "self._check_host(headers)",
            "pass",
        ),
        defence(
            "no posts from other pages",
            _WEB + "security.py",
            "api/test_security.py::test_a_foreign_page_cannot_post",
            "self._check_origin(scope, headers)",
            "pass",
        ),
        defence(
            "no websockets from other pages",
            _WEB + "security.py",
            "api/test_security.py::test_a_foreign_page_or_host_cannot_open_a_websocket",
            'if scope["type"] not in ("http", "websocket"):',
            'if scope["type"] != "http":',
        ),
        defence(
            "only allowed pages can read answers",
            _WEB + "app.py",
            "api/test_security.py::test_an_allowed_origin_can_post_and_read_and_others_still_cannot",
            "allow_origins=settings.allowed_origins,",
            'allow_origins=["*"],',
        ),
    ),
    "a server that listens to everybody": (
        defence(
            "by default only this machine can connect",
            "server/settings.py",
            "api/test_security.py::test_by_default_no_other_machine_can_connect",
            'host: str = _network("127.0.0.1"',
            'host: str = _network("0.0.0.0"',
        ),
    ),
    "a request that names any model": (
        defence(
            "only the models that the server was started with",
            _ENGINE + "registry.py",
            "api/test_security.py::test_a_client_cannot_name_a_path_or_a_repository",
            'raise ModelNotFound(f"model {name[:60]!r} is not served; must be one of {names}", "model")',
            "self.models.append(self._served(name))\n        return self.models[-1]",
        ),
    ),
    "internals in an error": (
        defence(
            "a failing model's error is not passed on",
            _ENGINE + "failure.py",
            "api/test_native.py::test_a_failing_model_is_a_500_that_says_nothing_of_its_insides_and_the_next_request_is_served",
            'TranscriptionFailed("The model failed on this audio; see the server\'s log.")',
            "TranscriptionFailed(str(error))",
        ),
        defence(
            "an unexpected exception's text is not passed on",
            _WEB + "middleware.py",
            "api/test_native.py::test_an_unexpected_exception_is_a_500_with_a_request_id_that_the_log_has_too",
            "        except Exception:\n            log.exception(",
            "        except Exception as error:\n            name = repr(error)\n            log.exception(",
        ),
    ),
}
