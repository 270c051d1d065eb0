"""The workers that decode audio files: warm, limited, replaced when they fail, and gone with whoever started them."""

import gzip
import io
import re
import runpy
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from server.audio import workers
from server.audio.decode import SAMPLE_RATE, AudioLimits, decode, decode_blocks, decoder_job, prepare_decoding
from server.audio.workers import decoded_blocks
from server.errors import AudioError, AudioTooLong, Unavailable
from tests.decoders import cold_pool, use_worker
from tests.muxing import cut_at_60_percent, encoded, loudest_hertz, tone, written_by_av


@pytest.fixture(autouse=True)
def started(monkeypatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The workers that a test starts. None is warm, so that a test's own script is used."""
    with cold_pool(monkeypatch) as started:
        yield started


def test_blocks_come_as_they_are_read_and_the_next_file_gets_the_same_worker(started):
    long = written_by_av(tone(120.0, 16000), 16000, "webm", "libopus")
    blocks = decode_blocks(long)
    assert len(next(blocks)) < 5 * SAMPLE_RATE
    blocks.close()
    whole = decode(long)
    assert len(whole) == pytest.approx(120 * SAMPLE_RATE, abs=10)
    assert np.array_equal(decode(long), whole)
    assert len(started) == 1


def test_files_that_are_decoded_at_the_same_time_have_a_worker_each(started):
    files = [written_by_av(tone(20.0, 16000, 1, hertz), 16000, "webm", "libopus") for hertz in (300, 600)]
    together = [decode_blocks(file) for file in files]
    mixed = [[next(blocks) for blocks in together] for _ in range(4)]
    for at, hertz in enumerate((300, 600)):
        assert loudest_hertz(np.concatenate([blocks[at] for blocks in mixed])) == pytest.approx(hertz, abs=2)
    assert len(started) == 2
    for blocks in together:
        blocks.close()


def test_a_warm_worker_costs_less_than_5_ms_a_file():
    flac = encoded(tone(0.1), 16000, "FLAC")
    decode(flac)
    took = []
    for _ in range(30):
        began = time.perf_counter()
        decode(flac)
        took.append(time.perf_counter() - began)
    # The shortest: other programs may have had the processor.
    assert min(took) < 0.005


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_16")])
def test_raw_wav_needs_no_process(started, format, subtype):
    assert len(decode(encoded(tone(1.0, 48000, 2), 48000, format, subtype))) == pytest.approx(16_000, abs=2)
    assert started == []


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_24"), ("FLAC", None), ("OGG", None), ("AIFF", None)])
def test_libsndfile_reads_files_only_in_a_worker(started, format, subtype):
    assert len(decode(encoded(tone(1.0), 16000, format, subtype))) == pytest.approx(16_000, abs=2000)
    assert len(started) == 1
    code = "import sys, server.web.app, server.canary\nassert not {'soundfile', 'av'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("sent", ["b'Z', b''", "b'A', b'abc'"], ids=["unknown letter", "half a sample"])
def test_a_worker_that_sends_nonsense_is_ended_and_costs_one_request(started, monkeypatch, tmp_path, sent):
    use_worker(monkeypatch, tmp_path, f"send({sent})\ntime.sleep(60)\n")
    monkeypatch.setattr(workers, "STOP_S", 0.1)
    with pytest.raises(AudioError, match="Unsupported or damaged audio file"):
        decode(encoded(tone(), 16000, "FLAC"))
    assert started[0].returncode == -9


def test_a_codec_that_ffmpeg_does_not_know_costs_no_worker(started):
    file = bytearray(written_by_av(tone(1.0, 48000, 2), 48000, "wav", "libmp3lame"))
    file[20:22] = b"\x34\x12"
    for _ in range(2):
        with pytest.raises(AudioError, match="Unsupported or damaged audio file"):
            decode(bytes(file))
    assert len(started) == 1


def test_an_offset_that_no_file_can_have_costs_no_worker(started):
    file = bytearray(encoded(tone(), 16000, "CAF"))
    at = file.index(b"free") + 4
    file[at : at + 8] = struct.pack(">q", 1 << 62)
    for _ in range(2):
        with pytest.raises(AudioError, match="no audio can be decoded"):
            decode(bytes(file))
    assert len(started) == 1


def test_a_worker_that_was_killed_while_it_waited_is_replaced(started):
    flac = encoded(tone(), 16000, "FLAC")
    decode(flac)
    started[0].kill()
    started[0].wait()
    assert len(decode(flac)) == 16_000
    assert len(started) == 2


def test_workers_that_wait_for_long_end(monkeypatch, started):
    monkeypatch.setattr(workers, "IDLE_S", 0.1)
    decode(encoded(tone(), 16000, "FLAC"))
    started[0].wait(20)
    assert workers.POOL._idle == []


def test_a_worker_that_was_prepared_decodes_the_next_file_and_a_16_bit_wav_needs_none(tmp_path, started):
    wav, flac = tmp_path / "a.wav", tmp_path / "a.flac"
    wav.write_bytes(encoded(tone(), 16000, "WAV"))
    flac.write_bytes(encoded(tone(), 16000, "FLAC"))
    for path in (wav, tmp_path / "gone.flac"):
        prepare_decoding(path)
    assert started == []
    prepare_decoding(flac)
    prepare_decoding(flac)
    assert len(started) == 1
    assert len(decode(flac)) == 16_000
    assert len(started) == 1


@pytest.mark.parametrize("limit", ["KEPT_MEMORY = -(1 << 40)", "MAX_JOBS = 1"])
def test_a_worker_ends_after_much_memory_or_many_jobs(started, monkeypatch, tmp_path, limit):
    name, value = limit.split(" = ")
    script = tmp_path / "decoding.py"
    script.write_text(
        f"import runpy\nmain = runpy.run_path({str(workers.SCRIPT)!r})['main']\n"
        f"main.__globals__[{name!r}] = {value}\nmain()\n"
    )
    monkeypatch.setattr(workers, "SCRIPT", script)
    flac = encoded(tone(), 16000, "FLAC")
    for count in (1, 2):
        assert len(decode(flac)) == 16_000
        assert len(started) == count


def test_no_worker_outlives_a_process_that_is_killed(tmp_path):
    path = tmp_path / "long.flac"
    path.write_bytes(encoded(tone(600.0), 16000, "FLAC"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom server.audio import workers\n"
        "from server.audio.decode import decode, decode_blocks\n"
        "path = Path(sys.argv[1])\nbusy, other = decode_blocks(path), decode_blocks(path)\n"
        "next(busy), next(other)\nother.close()\n"
        "print('\\n'.join(str(worker.process.pid) for worker in workers.POOL._idle), flush=True)\n"
        "import time\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert parent.stdout
    assert int(parent.stdout.readline()) > 0
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_compressed_file_is_read_through_the_object_that_opened_it(tmp_path):
    path = tmp_path / "tone.flac.gz"
    with gzip.open(path, "wb") as file:
        file.write(encoded(tone(), 16000, "FLAC"))
    with gzip.open(path) as file:
        assert len(decode(file)) == 16_000


@pytest.mark.parametrize(
    ("file", "demuxer", "libsndfile"),
    [
        (written_by_av(tone(6.0, 48000, 2), 48000, "webm", "libopus"), "matroska", False),
        (encoded(tone(6.0, 48000), 48000, "OGG", "OPUS"), "ogg", True),
        (encoded(tone(6.0), 16000, "MP3"), "mp3", False),
    ],
    ids=["webm", "ogg", "mp3"],
)
def test_the_worker_itself_stops_at_the_limit_on_seconds(file, demuxer, libsndfile):
    job = decoder_job(demuxer, AudioLimits(max_s=5), libsndfile=libsndfile)
    with pytest.raises(AudioTooLong, match="limit"):
        list(decoded_blocks(io.BytesIO(file), job))


def test_the_server_stops_at_the_limit_on_seconds_whatever_a_worker_sends(monkeypatch, tmp_path):
    use_worker(monkeypatch, tmp_path, f"send(b'A', bytes({4 * 3 * SAMPLE_RATE}))\nend()\n")
    with pytest.raises(AudioTooLong, match="longer than the limit of 2 s"):
        decode(encoded(tone(), 16000, "FLAC"), AudioLimits(max_s=2))


def test_no_demuxer_but_the_named_one_opens_a_file():
    sun = encoded(tone(), 16000, "AU")
    assert sum(len(block) for block in decoded_blocks(io.BytesIO(sun), decoder_job("au", AudioLimits()))) == 16_000
    with pytest.raises(workers.Damaged):
        list(decoded_blocks(io.BytesIO(sun), decoder_job("mov", AudioLimits())))


def test_a_playlist_opens_no_other_file_even_in_its_own_demuxer(tmp_path):
    other = tmp_path / "other.ts"
    other.write_bytes(written_by_av(tone(2.0, 48000, 2), 48000, "mpegts", "aac"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nfile://{other}\n#EXT-X-ENDLIST\n".encode()
    with pytest.raises(workers.Damaged):
        list(decoded_blocks(io.BytesIO(playlist), decoder_job("hls", AudioLimits())))


@pytest.mark.parametrize(
    "code", ["time.sleep(60)\n", "os.kill(os.getpid(), signal.SIGSTOP)\n"], ids=["sleeps", "gets no processor time"]
)
def test_a_decoder_that_stands_still_is_ended_and_its_file_is_not_called_invalid(started, monkeypatch, tmp_path, code):
    use_worker(monkeypatch, tmp_path, code)
    monkeypatch.setattr(workers, "STALL_S", 0.2)
    with pytest.raises(Unavailable, match=r"made no progress for 0\.2 s.*Try again"):
        decode(written_by_av(tone(), 16000, "ipod", "aac"))
    assert started[0].returncode == -signal.SIGKILL


# The real decoder, with a tenth of a second of processor time, and files that need CODE to be decoded.
COMPUTING = """
import runpy
decoder = runpy.run_path(DECODER)
own = decoder["main"].__globals__
own["MAX_COMPUTING_S"] = 0.1

def blocks(*arguments):
    CODE

own["blocks"] = blocks
decoder["main"]()
"""


@pytest.mark.parametrize(
    "code", ["while True: pass", "import os\n    while True: os.stat('/')"], ids=["itself", "in the system"]
)
def test_a_file_that_keeps_its_decoder_computing_without_output_is_invalid(started, monkeypatch, tmp_path, code):
    script = tmp_path / "decoding.py"
    script.write_text(COMPUTING.replace("DECODER", repr(str(workers.SCRIPT))).replace("CODE", code))
    monkeypatch.setattr(workers, "SCRIPT", script)
    with pytest.raises(AudioError, match="too much processor time without any output"):
        decode(encoded(tone(), 16000, "FLAC"))
    assert started[0].returncode == -signal.SIGPROF


def test_the_time_that_a_worker_takes_to_start_is_not_the_files(monkeypatch, tmp_path):
    # Its output follows its start at once, in one piece, however busy this machine is.
    code = "time.sleep(1)\ncontrol.sendall(b'R' + frame(b'A', bytes(64_000)) + END)\nwait()\n"
    use_worker(monkeypatch, tmp_path, code, starts=False)
    monkeypatch.setattr(workers, "STALL_S", 0.2)
    assert len(decode(encoded(tone(), 16000, "FLAC"))) == 16_000


def test_a_worker_that_does_not_start_is_ended_and_its_file_is_not_called_invalid(started, monkeypatch, tmp_path):
    use_worker(monkeypatch, tmp_path, "time.sleep(60)\n", starts=False)
    monkeypatch.setattr(workers, "START_S", 0.2)
    with pytest.raises(Unavailable, match=r"did not start within 0\.2 s.*Try again"):
        decode(encoded(tone(), 16000, "FLAC"))
    assert started[0].returncode == -signal.SIGKILL


def test_a_worker_that_fails_to_start_is_the_servers_trouble_and_logged(monkeypatch, tmp_path, caplog):
    use_worker(monkeypatch, tmp_path, "sys.exit('no such library')\n", starts=False)
    with pytest.raises(Unavailable, match="could not be started; try again"):
        decode(encoded(tone(), 16000, "FLAC"))
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("ERROR", "a decoder that was starting exited with 1: no such library")
    ]


def test_a_system_that_allows_no_more_processes_is_the_servers_trouble_and_logged(monkeypatch, caplog):
    monkeypatch.setattr(workers.sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="could not be started; try again"):
        decode(encoded(tone(), 16000, "FLAC"))
    assert "no decoder could be started" in caplog.text


def test_a_decoder_that_crashes_costs_one_request(monkeypatch, tmp_path, caplog):
    use_worker(monkeypatch, tmp_path, "send(b'A', bytes(64_000))\nos.abort()\n")
    with caplog.at_level("INFO"), pytest.raises(AudioError, match="Unsupported or damaged audio file"):
        decode(written_by_av(tone(), 16000, "ipod", "aac"))
    assert "exited with -6" in caplog.text


def test_what_a_worker_writes_to_its_standard_error_is_not_the_servers(monkeypatch, tmp_path, capfd):
    use_worker(monkeypatch, tmp_path, "os.write(2, b'junk')\nsend(b'A', bytes(64_000))\nend()\n")
    assert len(decode(encoded(tone(), 16000, "FLAC"))) == 16_000
    assert capfd.readouterr().err == ""


def damaged(file: bytes, first: int) -> bytes:
    """Forty bytes of noise in every 300, from `first` on."""
    noisy, noise = bytearray(file), np.random.default_rng(1)
    for start in range(first, len(noisy) - 40, 300):
        noisy[start : start + 40] = noise.bytes(40)
    return bytes(noisy)


def test_broken_audio_writes_nothing_to_the_servers_standard_error(tmp_path):
    mp3 = encoded(tone(10.0), 16000, "MP3")
    mp3_in_wav = written_by_av(tone(10.0), 16000, "wav", "libmp3lame")
    noise = np.random.default_rng(2).bytes(200_000)
    files = {
        "junk.mp3": b"\xff\xfb\x90\x64" + noise,
        "tagged.mp3": b"ID3\x04\0\0\0\0\x0f\x7f" + noise,
        "damaged.mp3": damaged(mp3, 500),
        "cut.mp3": cut_at_60_percent(mp3),
        "damaged.wav": damaged(mp3_in_wav, 500),
        "junk.wav": mp3_in_wav[: mp3_in_wav.index(b"data") + 8] + noise,
        "damaged.flac": damaged(encoded(tone(10.0), 16000, "FLAC"), 500),
        "damaged.ogg": damaged(encoded(tone(10.0), 16000, "OGG"), 500),
        "damaged.m4a": damaged(written_by_av(tone(10.0), 16000, "ipod", "aac"), 500),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from server.audio.decode import decode\n"
        "from server.errors import AudioError\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: print(path.name, len(decode(path)))\n"
        "    except AudioError as error: print(path.name, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(files)


def test_each_limit_of_the_process_is_set_even_if_the_system_refuses_another():
    code = (
        "import resource, runpy\n"
        f"limit_memory = runpy.run_path({str(workers.SCRIPT)!r})['_limit_memory']\n"
        "setrlimit = resource.setrlimit\n"
        "def as_on_a_mac(limit, values):\n"
        "    if limit == resource.RLIMIT_AS: raise ValueError('current limit exceeds maximum limit')\n"
        "    setrlimit(limit, values)\n"
        "resource.setrlimit = as_on_a_mac\n"
        "limit_memory(1 << 40)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "(0, 0)"


# A decoder as on macOS, where the address space cannot be limited. It may have 100 MB more than it begins with, and
# what it decodes takes MEGABYTES more than that.
AS_ON_A_MAC = """
import resource, runpy
setrlimit = resource.setrlimit

def as_on_a_mac(limit, values):
    if limit == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    setrlimit(limit, values)

resource.setrlimit = as_on_a_mac
decoder = runpy.run_path(DECODER)
own = decoder["main"].__globals__
# What a process on Linux has had includes what the one that started it had.
own["FILE_MEMORY"] = decoder["_peak_memory"]() + (100 << 20)
decoded = own["blocks"]

def blocks(*arguments):
    held = bytearray()
    yield from decoded(*arguments)
    if MEGABYTES:
        while len(held) < own["FILE_MEMORY"] + (MEGABYTES << 20):
            held += b"x" * (10 << 20)

own["blocks"] = blocks
decoder["main"]()
"""


def as_on_a_mac(tmp_path: Path, megabytes: int) -> Path:
    script = tmp_path / "decoding.py"
    script.write_text(f"DECODER, MEGABYTES = {str(workers.SCRIPT)!r}, {megabytes}\n{AS_ON_A_MAC}")
    return script


def test_where_address_space_cannot_be_limited_a_decoder_that_takes_too_much_memory_is_ended(
    monkeypatch, tmp_path, caplog
):
    file = written_by_av(tone(), 16000, "ipod", "aac")
    monkeypatch.setattr(workers, "SCRIPT", as_on_a_mac(tmp_path, megabytes=500))
    with caplog.at_level("INFO"), pytest.raises(AudioError, match="Unsupported or damaged audio file"):
        decode(file)
    assert re.search(r"exited with 1: MemoryError: more than \d+ MiB of memory", caplog.text)


def test_where_address_space_cannot_be_limited_a_decoder_within_its_memory_is_left_alone(monkeypatch, tmp_path):
    file = written_by_av(tone(), 16000, "ipod", "aac")
    alone = decode(file)
    workers.POOL.close()
    monkeypatch.setattr(workers, "SCRIPT", as_on_a_mac(tmp_path, megabytes=0))
    assert np.array_equal(decode(file), alone)


def test_the_memory_that_a_decoder_watches_is_counted_in_bytes():
    decoder = runpy.run_path(str(workers.SCRIPT))
    before = psutil.Process().memory_info().rss
    assert 0.9 * before < decoder["_peak_memory"]() < 100 * before
