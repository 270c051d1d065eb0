"""The parent of a supervised server: holds the listening sockets, and starts the server again when it crashes or hangs.

While no server runs, connections wait in the sockets' backlog. `canary serve --supervise` becomes this process. It
imports only the standard library and the log's format, so it stays small.

Parent and server share a socket pair. The server writes to it every second, and writes READY once its model is loaded.
When one of them dies, the other reads the end of the stream.
"""

import argparse
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from server.logs import configure_logging

log = logging.getLogger("canary.supervise")

# How the server finds its sockets: a JSON object with "sockets", "link" and "restarts".
VARIABLE = "CANARY_SUPERVISOR"
# Exit codes by which the server asks to be started again.
HUNG, GIVEN_UP = 75, 76
READY = b"!"
BEAT_S = 1.0


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    first: for a new server's first sign of life; silent: for each next one; back_off: before each restart in a row, the
    last one again and again; proven: a server that has run so long since it was ready starts over with the first.
    """

    first: float = 300.0
    silent: float = 60.0
    back_off: tuple[float, ...] = (0.0, 1.0, 5.0, 25.0, 60.0)
    proven: float = 300.0


def become_supervisor(command: Sequence[str], sockets: Sequence[socket.socket], level: str, format: str) -> NoReturn:
    """Replace this process with the parent of a server. command: what starts the server, with its arguments."""
    for listening in sockets:
        listening.set_inheritable(True)
    numbers = ",".join(str(listening.fileno()) for listening in sockets)
    # -P: a folder named "server" in the current one is not ours.
    python = [sys.executable, "-P", "-m", "server.cli.supervise"]
    os.execv(sys.executable, [*python, "--sockets", numbers, "--log", level, format, "--", *command])


class Supervisor:
    """Runs `command` again and again. sockets: the file descriptors that it listens on."""

    def __init__(self, command: Sequence[str], sockets: Sequence[int], patience: Patience | None = None):
        self._command = list(command)
        self._sockets = list(sockets)
        self._patience = patience or Patience()
        self._restarts: Counter[str] = Counter()
        self._in_a_row = 0
        self._was_ready = False
        self._server: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Run until the server ends by itself or by a signal to this process; returns the exit code."""
        self._woken, wakes = socket.socketpair()
        self._woken.setblocking(False)
        wakes.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        while True:
            reason, code = self._run_once()
            if self._stopping or code == 0:
                return 0
            if not self._was_ready and code is not None and code not in (HUNG, GIVEN_UP) and code > 0:
                # It cannot start, and has said why: a wrong model, a bad setting.
                return code
            self._restarts[reason] += 1
            waits = self._patience.back_off
            wait_s = waits[min(self._in_a_row, len(waits) - 1)]
            self._in_a_row += 1
            count = self._restarts.total()
            log.error(
                *("the server ended (%s); restart %d in %g s", reason, count, wait_s),
                extra={"fields": {"reason": reason, "restarts": count}},
            )
            if not self._sleep(wait_s):
                return 0

    def _stop(self, number: int, _: object) -> None:
        """Pass on Ctrl-C or SIGTERM. The server gets them from here alone, since it has a process group of its own."""
        self._stopping = True
        if self._server and self._server.poll() is None:
            self._server.send_signal(number)

    def _run_once(self) -> tuple[str, int | None]:
        """One server from its start to its end: why it ended, and its exit code; None if it could not be started."""
        link, its_link = socket.socketpair()
        told = {"sockets": self._sockets, "link": its_link.fileno(), "restarts": self._restarts}
        try:
            with its_link:
                self._server = subprocess.Popen(
                    self._command,
                    env={**os.environ, VARIABLE: json.dumps(told)},
                    pass_fds=[*self._sockets, its_link.fileno()],
                    process_group=0,
                )
        except OSError as error:
            link.close()
            log.error("the server cannot be started: %s", error)
            return "not_started", None
        if self._stopping:
            # The signal came before there was a server to pass it on to.
            self._server.terminate()
        with link:
            reason = self._watch(self._server, link)
        code = self._server.wait()
        return reason or _reason_for(code), code

    def _watch(self, server: "subprocess.Popen[bytes]", link: socket.socket) -> str | None:
        """Wait for the server's end. Kills it if it gives no sign of life, and returns that as the reason."""
        # Gaps count as no more than two looks: this process may have slept or been stopped, and the server with it.
        silent_s, limit_s, looked_at = 0.0, self._patience.first, time.monotonic()
        ready_at = None
        while True:
            readable = self._wait(BEAT_S, link)
            now = time.monotonic()
            gap_s, looked_at = min(now - looked_at, 2 * BEAT_S), now
            if link in readable:
                said = _received(link)
                if not said:
                    return None
                silent_s, limit_s = 0.0, self._patience.silent
                if READY in said:
                    self._was_ready, ready_at = True, now
            else:
                silent_s += gap_s
            if ready_at and now - ready_at > self._patience.proven:
                self._in_a_row = 0
            if silent_s > limit_s:
                log.error("the server gave no sign of life for %.0f s and is killed", silent_s)
                server.kill()
                return "no_heartbeat"

    def _sleep(self, seconds: float) -> bool:
        """Wait. False if this process is asked to stop meanwhile."""
        until = time.monotonic() + seconds
        while not self._stopping and (left_s := until - time.monotonic()) > 0:
            self._wait(left_s)
        return not self._stopping

    def _wait(self, seconds: float, *sockets: socket.socket) -> list[socket.socket]:
        """Wait for data or a signal; returns the sockets that can be read."""
        readable, _, _ = select.select([self._woken, *sockets], [], [], seconds)
        if self._woken in readable:
            self._woken.recv(4096)
        return [each for each in readable if each is not self._woken]


def _received(link: socket.socket) -> bytes:
    try:
        return link.recv(4096)
    except ConnectionError:
        return b""


def _reason_for(code: int) -> str:
    """A name for an exit code, as `subprocess` gives it."""
    named = {HUNG: "hang", GIVEN_UP: "model_failed"}
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal_{-code}"
    return named.get(code, f"exit_{code}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="canary-supervisor")
    parser.add_argument("--sockets", required=True)
    parser.add_argument("--log", nargs=2, default=("info", "text"))
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    configure_logging(*given.log)
    return Supervisor(given.command, [int(number) for number in given.sockets.split(",")]).run()


if __name__ == "__main__":
    sys.exit(main())
