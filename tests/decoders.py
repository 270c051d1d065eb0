"""Decoder workers that do what a test wants, and a pool without warm ones."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.audio import workers

# What a worker needs to answer.
_ANSWERS = """
import json, os, signal, socket, struct, sys, time

control = socket.socket(fileno=0)

def frame(letter, content):
    return letter + struct.pack("=I", len(content)) + content

def send(letter, content):
    control.sendall(frame(letter, content))

END = frame(b"E", json.dumps({"code": 0, "message": "", "last": True}).encode())

def wait():
    while control.recv(4096):
        pass

# Does not exit before its answers are read: whoever still has something to send to it would get an error.
def end():
    control.sendall(END)
    wait()

"""
# What every worker does first.
_START = """
control.sendall(b"R")
_, (descriptor,), _, _ = socket.recv_fds(control, 4096, 1)
file = os.fdopen(descriptor, "rb", 0)

"""


def use_worker(patch: pytest.MonkeyPatch, folder: Path, code: str, starts: bool = True) -> None:
    """Have the pool start workers that take a job and then run `code`. starts: otherwise they run nothing else."""
    script = folder / "decoding.py"
    script.write_text(_ANSWERS + (_START if starts else "") + code)
    patch.setattr(workers, "SCRIPT", script)


@contextmanager
def cold_pool(patch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A pool without warm workers, and every process that it starts."""
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(workers.Worker):
        def __init__(self) -> None:
            super().__init__()
            started.append(self.process)

    workers.POOL.close()
    patch.setattr(workers, "Worker", Recorded)
    yield started
    workers.POOL.close()
