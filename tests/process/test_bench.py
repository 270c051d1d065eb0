"""`canary bench` as a whole, on the toy and with few repetitions: that it works, not how fast."""

import json
import subprocess
import sys

import pytest


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
