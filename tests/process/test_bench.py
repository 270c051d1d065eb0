"""`canary bench` as a whole, on the toy and with few repetitions: that it works, not how fast."""

import json
import subprocess
import sys
from subprocess import PIPE

import psutil
import pytest

from server.cli.bench import load


def test_the_whole_command_measures_the_toy_alone_and_served(tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["--threads", "1", "--seconds", "2", "--rows", "1,2", "--lengths", "2", "--concurrency", "2"]
    command = [sys.executable, "-m", "server", "bench", *arguments, "--requests", "2", "--repeats", "1"]
    ran = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(file.read_text())
    assert result["model"]["name"] == "toy"
    assert result["conversion_s"] > 0
    assert [row["rows"] for row in result["decode"]] == [1, 2]
    assert [(row["concurrency"], row["requests"]) for row in result["load"]] == [(2, 2)]
    # 4 and 22 s of audio, both finished within the time that was counted.
    assert result["load"][0]["throughput"] == pytest.approx(26.0 / result["load"][0]["wall_s"])
    assert 0 < result["load"][0]["first_segment_p50_s"] <= result["load"][0]["p95_s"]
    assert "Requests of 4 to 35 s over HTTP:" in ran.stdout


def test_where_the_system_keeps_no_peak_of_a_servers_memory_the_most_that_was_seen_counts(monkeypatch):
    script = "held = b'x' * 100_000_000; print(flush=True); input(); del held; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        server = load.BenchServer(process, "http://127.0.0.1:1")
        monkeypatch.setattr(sys, "platform", "darwin")
        assert server.peak_mb() is None
        process.stdout.readline()
        server.sample_memory()
        peak = server.peak_mb()
        assert peak == pytest.approx(psutil.Process(process.pid).memory_info().rss / 1e6, abs=1)
        assert peak > 100
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        server.sample_memory()
        assert server.peak_mb() == peak
        process.stdin.write("\n")
