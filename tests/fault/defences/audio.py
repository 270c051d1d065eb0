"""Audio files and streams, and the processes that decode them."""

from tests.fault.defences.defence import Defence, defence

_AUDIO = "server/audio/"
_LIMITS = "process/test_decoder.py::test_the_limits_hold_in_the_other_process_too"
_EACH_LIMIT = "process/test_audio.py::test_each_limit_holds_alone"

DECODING: dict[str, tuple[Defence, ...]] = {
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
            "process/test_workers.py::test_a_decoder_that_stands_still_is_ended_and_its_file_is_not_called_invalid",
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
        defence(
            "so is the time that the system spends for it",
            _AUDIO + "decoder_process.py",
            "process/test_workers.py::test_a_file_that_keeps_its_decoder_computing_without_output_is_invalid",
            "signal.ITIMER_PROF",
            "signal.ITIMER_VIRTUAL",
        ),
    ),
    "a machine too busy to decode": (
        defence(
            "the time that a worker takes to start is not the file's",
            _AUDIO + "workers.py",
            "process/test_workers.py::test_the_time_that_a_worker_takes_to_start_is_not_the_files",
            "self.socket.settimeout(START_S)",
            "self.socket.settimeout(STALL_S)",
        ),
        defence(
            "a worker without processor time makes no file invalid",
            _AUDIO + "workers.py",
            "api/test_abuse.py::test_a_machine_too_busy_to_decode_is_a_503_that_says_to_try_again",
            "raise stalled(demuxer) from None",
            "raise unreadable() from None",
        ),
        defence(
            "a decoder without processor time makes no live stream invalid",
            "server/live/container.py",
            "live/test_container.py::test_a_decoder_that_stands_still_is_stopped_and_its_stream_is_not_called_invalid",
            'raise stalled(f"live {self._encoding}")',
            "raise self._damaged()",
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
