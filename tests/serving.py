"""A server in a process of its own, for scripts that measure or attack one."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

CANARY = ("-m", "server")


@dataclass(frozen=True)
class Served:
    """A server whose model is loaded. log: what it writes to stderr."""

    process: psutil.Process
    url: str
    log: Path

    @property
    def resident_mb(self) -> float:
        """Its memory, without its children's."""
        return self.process.memory_info().rss / 1e6


@contextmanager
def serving(
    *options: str, program: tuple[str, ...] = CANARY, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Runs `canary serve` on a free port. program: Python's arguments before "serve", if not those of `canary`."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "log")
        command = [sys.executable, *program, "serve", "--port", "0", *options]
        with log.open("w") as file:
            process = subprocess.Popen(command, env=environment, stderr=file)
        try:
            while not (found := re.search(r"serving on (http://[\w.:\[\]]+)", log.read_text(encoding="utf-8"))):
                assert process.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.1)
            with httpx.Client(base_url=found[1], trust_env=False, timeout=60) as client:
                while client.get("/ready").status_code != 200:
                    time.sleep(0.1)
            yield Served(psutil.Process(process.pid), found[1], log)
        finally:
            process.terminate()
            process.wait(60)
