"""What protects the server, and the test that fails without it. `mutations.py` takes each of these out and looks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defence:
    """what: the defence, in a few words; test: the one that must fail, below `tests`.

    edits: (what is in the file, what takes its place), which together take the defence out.
    """

    what: str
    file: str
    test: str
    edits: tuple[tuple[str, str], ...]


def defence(what: str, file: str, test: str, *texts: str) -> Defence:
    return Defence(what, file, test, tuple(zip(texts[::2], texts[1::2], strict=True)))


_AUDIO, _WEB, _ENGINE = "server/audio/", "server/web/", "server/engine/"
_LIMITS = "process/test_decoder.py::test_the_limits_hold_in_the_other_process_too"
_EACH_LIMIT = "process/test_audio.py::test_each_limit_holds_alone"

# By the fault or attack that it is for.
DEFENCES: dict[str, tuple[Defence, ...]] = {
    "a small file that decodes to gigabytes": (
        defence(
            "a worker counts the seconds that it decodes",
            _AUDIO + "decoder_process.py",
            "process/test_workers.py::test_the_worker_itself_stops_at_the_limit_on_seconds",
            "if self._total > self._max_s * SAMPLE_RATE + 1:",
            "if False:",
        ),
        defence(
            "the server counts the seconds that it is sent",
            _AUDIO + "decode.py",
            "process/test_workers.py::test_the_server_stops_at_the_limit_on_seconds_whatever_a_worker_sends",
            "in capped(_file_blocks(file, file_type, limits), limits):",
            "in _file_blocks(file, file_type, limits):",
        ),
        defence(
            "a worker's memory is limited",
            _AUDIO + "decoder_process.py",
            "live/test_container.py::test_a_decoder_of_live_audio_may_use_less_memory_than_one_of_files",
            "resource.setrlimit(resource.RLIMIT_AS, (most, most))",
            "pass",
        ),
    ),
    "a header that lies": (
        defence(
            "limit on a WAV's sample rate",
            _AUDIO + "decode.py",
            _EACH_LIMIT,
            "if not limits.min_rate <= wav.rate <= limits.max_rate:",
            "if False:",
        ),
        defence(
            "limit on a WAV's channels",
            _AUDIO + "decode.py",
            _EACH_LIMIT,
            "if wav.channels > limits.max_channels:",
            "if False:",
        ),
        defence(
            "limit on the seconds that a WAV declares",
            _AUDIO + "decode.py",
            _EACH_LIMIT,
            "if wav.frames / wav.rate > limits.max_s:",
            "if False:",
        ),
        defence(
            "limit on other files' sample rates",
            _AUDIO + "decoder_process.py",
            _LIMITS,
            'if not job["min_rate"] <= rate <= job["max_rate"]:',
            "if False:",
        ),
        defence(
            "limit on other files' channels",
            _AUDIO + "decoder_process.py",
            _LIMITS,
            'if channels > job["max_channels"]:',
            "if False:",
        ),
    ),
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
    "a demuxer or decoder that crashes or hangs": (
        defence(
            "only known codecs are decoded",
            _AUDIO + "decoder_process.py",
            "process/test_decoder.py::test_a_codec_that_is_not_supported_is_named_with_those_that_are",
            "if stream.codec_context.name not in _DECODERS:",
            "if False:",
        ),
        defence(
            "ffmpeg opens no other decoder, not even to look",
            _AUDIO + "decoder_process.py",
            "process/test_decoder.py::test_no_decoder_of_pictures_looks_at_a_film",
            '    "codec_whitelist": ",".join(sorted(_DECODERS)),\n',
            "",
        ),
        defence(
            "the demuxer is named, not guessed",
            _AUDIO + "decoder_process.py",
            "process/test_workers.py::test_no_demuxer_but_the_named_one_opens_a_file",
            '"r", format=demuxer,',
            '"r", format=None,',
        ),
        defence(
            "a worker that failed is not used again",
            _AUDIO + "workers.py",
            "process/test_workers.py::test_a_worker_that_sends_nonsense_is_ended_and_costs_one_request",
            "keep = worker.can_be_reused and len(self._idle) < MAX_IDLE",
            "keep = len(self._idle) < MAX_IDLE",
        ),
        defence(
            "a worker without output is stopped",
            _AUDIO + "workers.py",
            "process/test_workers.py::test_a_decoder_that_hangs_is_stopped",
            "self.socket.settimeout(STALL_S)",
            "self.socket.settimeout(None)",
        ),
        defence(
            "a worker's computing time is limited",
            _AUDIO + "decoder_process.py",
            "live/test_container.py::test_a_decoder_that_computes_for_ever_is_ended_by_the_system",
            "MAX_COMPUTING_S if seconds is None else seconds",
            "0",
        ),
    ),
    "a file that names other files": (
        defence(
            "ffmpeg may open nothing but the file itself",
            _AUDIO + "decoder_process.py",
            "process/test_workers.py::test_a_playlist_opens_no_other_file_even_in_its_own_demuxer",
            '    "protocol_whitelist": "none",\n',
            "",
        ),
    ),
    "internals in an error": (
        defence(
            "a failing model's error is not passed on",
            _ENGINE + "thread.py",
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
    "a checkpoint that runs code": (
        defence(
            "the unpickler knows only what tensors need",
            "convert/checkpoint.py",
            "fault/test_archives.py::test_a_pickle_that_would_run_code_is_rejected_and_runs_nothing",
            'raise _Refused(f"{module}.{name}")',
            "return super().find_class(module, name)",
        ),
        defence(
            "torch from 2.10",
            "pyproject.toml",
            "unit/test_constraints.py::test_versions_with_known_vulnerabilities_are_not_installed",
            '    "torch>=2.10,',
            '    "torch>=2.5,',
        ),
    ),
    "a configuration that runs code": (
        defence(
            "YAML is read as plain values",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_yaml_tag_that_would_construct_an_object_is_rejected_and_runs_nothing",
            "yaml.safe_load(",
            "yaml.unsafe_load(",
        ),
        defence(
            "no target in it is called",
            "convert/nemo.py",
            "fault/test_archives.py::test_targets_in_the_configuration_are_never_called",
            "        return values\n\n    def read(",
            '        if target := (values.get("encoder") or {}).get("_target_"):\n'
            "            eval(target, {module.__name__: module for module in (__import__(target.split('.')[0]),)})()\n"
            "        return values\n\n    def read(",
        ),
    ),
    "an archive that writes outside its folder": (
        defence(
            "no member outside the archive",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_member_that_points_outside_the_archive_is_rejected",
            'if path.is_absolute() or ".." in path.parts:',
            "if False:",
        ),
        defence(
            "no links and no devices",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_link_or_device_is_rejected",
            "if not member.isreg() or member.issparse():",
            "if False:",
        ),
        defence(
            "no name twice",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_duplicate_name_is_rejected_even_if_it_is_spelled_differently",
            "if str(path) in members:",
            "if False:",
        ),
        defence(
            "a gzipped archive is unzipped up to a limit",
            "convert/nemo.py",
            "fault/test_archives.py::test_unzipping_a_gzip_bomb_stops_at_the_limit",
            "if plain.tell() > MAX_UNZIPPED_BYTES:",
            "if False:",
        ),
    ),
    "a tokenizer that corrupts memory": (
        defence(
            "SentencePiece from 0.2.1",
            "pyproject.toml",
            "unit/test_constraints.py::test_versions_with_known_vulnerabilities_are_not_installed",
            '"sentencepiece>=0.2.1"',
            '"sentencepiece>=0.2"',
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
            "answers are for the allowed pages alone",
            _WEB + "app.py",
            "api/test_security.py::test_an_allowed_origin_can_post_and_read_and_others_still_cannot",
            "allow_origins=settings.allowed_origins,",
            'allow_origins=["*"],',
        ),
    ),
    "a size that is checked after all was read": (
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
    "a queue without end": (
        defence(
            "limit on what waits",
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
    "a request that names any model": (
        defence(
            "only the models that the server was started with",
            _ENGINE + "registry.py",
            "api/test_security.py::test_a_client_cannot_name_a_path_or_a_repository",
            'raise ModelNotFound(f"model {name[:60]!r} is not served; must be one of {names}", "model")',
            "self.models.append(self._served(name))\n        return self.models[-1]",
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
    "a model that cannot be loaded": (
        defence(
            "not even an exit while it is loaded ends the server",
            _ENGINE + "thread.py",
            "unit/test_watchdog.py::test_an_exit_while_the_model_is_loaded_does_not_end_the_event_loop",
            'error if isinstance(error, Exception) else RuntimeError(f"loading ended with {type(error).__name__}")',
            "error",
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
    "words twice where pieces meet, and loops": (
        defence(
            "words of an overlap are merged",
            "server/longform/joining.py",
            "unit/test_joining.py::test_merging_keeps_every_word_once_wherever_the_cuts_are",
            "[j >= skip for j in range(len(right_words))]",
            "[True for j in range(len(right_words))]",
        ),
        defence(
            "a text that loops is decoded again",
            "server/longform/pieces.py",
            "unit/test_longform.py::test_a_loop_is_decoded_again_with_a_wider_search_and_then_in_halves",
            "if self.loop_guard and is_loop(outcome.text):",
            "if False:",
        ),
    ),
    "a language that nobody gave": (
        defence(
            "it is found out",
            "server/settings.py",
            "api/test_native.py::test_a_language_that_was_not_given_is_found_out_and_said_to_be",
            '    default_language: str = _models(\n        "auto"',
            '    default_language: str = _models(\n        "en"',
        ),
    ),
    "audio longer than the model takes": (
        defence(
            "long audio is cut into pieces",
            "server/longform/cutting.py",
            "unit/test_cutting.py::test_without_pauses_pieces_have_about_the_longest_length_and_overlap",
            "self._longest = int(cutting.longest_s * SAMPLE_RATE)",
            "self._longest = int(3600 * SAMPLE_RATE)",
        ),
    ),
    "a batch that changes its members": (
        defence(
            "padding is masked",
            "model/encoder.py",
            "unit/test_equivalences.py::test_encodings_of_a_padded_batch_are_those_of_each_sound_alone",
            "bias = xp.where(mask, bias, -math.inf)",
            "pass",
        ),
        defence(
            "padding is masked for the decoder, too",
            "model/canary/generate.py",
            "unit/test_equivalences.py::test_a_padded_batch_of_eight_mixed_requests_gives_the_tokens_of_eight_single_ones",
            "return xp.stack(rows), lengths",
            "return xp.stack(rows), [T] * len(rows)",
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
            "who has waited too long is told",
            _ENGINE + "thread.py",
            "unit/test_watchdog.py::test_a_request_that_has_not_started_in_time_is_told_so_while_the_others_run_on",
            "timer = asyncio.get_running_loop().call_later(left_s, self._expire, request)",
            "timer = None if left_s else None",
        ),
        defence(
            "a process that can be started again ends",
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
    "a model that ends": (
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
            _WEB + "requests.py",
            "api/test_native.py::test_a_full_line_is_a_503_that_says_when_to_come_back",
            "    _check_room(request)\n    kind",
            "    kind",
        ),
        defence(
            "retry-after is what waits, by the measured speed",
            _ENGINE + "admission.py",
            "unit/test_admission.py::test_retry_after_is_what_waits_divided_by_the_measured_speed",
            "return round(min(MAX_RETRY_S, max(1.0, backlog_s / self._speed.now)))",
            "return 5 if backlog_s else 1",
        ),
        defence(
            "files have their share beside live sessions",
            _ENGINE + "waiting.py",
            "unit/test_waiting.py::test_files_get_a_quarter_of_the_time_however_many_live_passes_wait",
            "return min(waiting, key=lambda lane: lane.tag_s).passes[0] if waiting else None",
            "return waiting[0].passes[0] if waiting else None",
        ),
        defence(
            "a live session that the model has no time for is refused",
            "server/live/capacity.py",
            "live/test_capacity.py::test_sessions_are_admitted_while_all_of_them_can_look_at_the_widest_step",
            "if self._seats and self.load + self.load_of_one > LIVE_SHARE:",
            "if False:",
        ),
    ),
    "uploads that take for ever": (
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
            "the slowest makes room",
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
    "a flipped bit in the weights": (
        defence(
            "small files' digests are checked",
            "model/digests.py",
            "fault/test_damage.py::test_a_folder_with_a_damaged_file_is_refused_in_one_line_that_names_the_file",
            " or first_damage(folder, small):",
            ":",
        ),
        defence(
            "large files' digests are checked",
            "model/digests.py",
            "fault/test_damage.py::test_damage_to_a_large_file_is_found_while_the_model_is_being_loaded",
            "pool.submit(first_damage, folder, large)",
            "pool.submit(first_damage, folder, {})",
        ),
        defence(
            "a damaged model in the cache is converted again",
            _ENGINE + "registry.py",
            "fault/test_damage.py::test_a_damaged_model_in_the_cache_is_converted_again",
            "    except DamagedError as error:\n",
            "    except ZeroDivisionError as error:\n",
        ),
    ),
    "a configuration of other types": (
        defence(
            "sections of NeMo's configuration",
            "convert/nemo.py",
            "fault/test_configurations.py::test_a_section_of_nemos_configuration_that_is_something_else_is_named",
            "for key in SECTIONS:",
            "for key in ():",
        ),
        defence(
            "sections of a converted configuration",
            "model/config.py",
            "fault/test_configurations.py::test_a_section_of_a_converted_configuration_that_is_something_else_is_named",
            '            if not isinstance(value, dict):\n                raise ConfigError(f"{prefix}{field.name}',
            '            if False:\n                raise ConfigError(f"{prefix}{field.name}',
        ),
    ),
    "decoders that write to the log": (
        defence(
            "a worker's standard error is not the server's",
            _AUDIO + "workers.py",
            "process/test_workers.py::test_what_a_worker_writes_to_its_standard_error_is_not_the_servers",
            "stderr=subprocess.PIPE,",
            "stderr=None,",
            "cast(BinaryIO, self.process.stderr).close()",
            "pass",
        ),
    ),
}
