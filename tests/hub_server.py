"""A local Hugging Face Hub with one repository. It speaks as much of the Hub's HTTP API as a download, or reading
a dataset, needs.
"""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + 34 * "0"


@dataclass
class Hub:
    """files: the repository's files by name; break_after: after how many bytes each of the next downloads breaks off.

    status, error: a status other than 200, and the Hub's error code, to answer every request with.
    """

    repo: str
    files: dict[str, Path]
    status: int = 200
    error: str = ""
    break_after: list[int] = field(default_factory=list)
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """Requests received: method, path and, if present, Range."""
    tokens: list[str | None] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append(" ".join(filter(None, (self.command, path, self.headers["Range"]))))
        hub.tokens.append(self.headers["Authorization"])
        if hub.status != 200:
            return self._send(hub.status, b"{}", {"X-Error-Code": hub.error} if hub.error else {}, body)
        if re.fullmatch(rf"/api/models/{hub.repo}/tree/[\w-]+", path):
            listing = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in hub.files]
            return self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        if re.fullmatch(rf"/api/datasets/{hub.repo}(/revision/{COMMIT})?", path):
            return self._send(200, json.dumps({"id": hub.repo, "sha": COMMIT}).encode(), {}, body)
        if match := re.fullmatch(rf"/api/datasets/{hub.repo}/tree/{COMMIT}(/.*)?", path):
            listing = self._folder((match[1] or "").strip("/"))
            if not listing:
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            return self._send(200, json.dumps(listing).encode(), {}, body)
        match = re.fullmatch(rf"(?:/datasets)?/{hub.repo}/resolve/([\w-]+)/(.+)", path)
        if not match:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        revision, name = match.groups()
        if revision not in ("main", COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if name not in hub.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        return self._send_file(hub.files[name].read_bytes(), body)

    def _folder(self, folder: str) -> list[dict[str, object]]:
        """The files and folders in a folder of a dataset."""
        start = f"{folder}/" if folder else ""
        listed = {
            start + name.removeprefix(start).partition("/")[0] for name in self.hub.files if name.startswith(start)
        }
        return [
            {"type": "file", "path": name, "size": self.hub.files[name].stat().st_size, "oid": "0"}
            if name in self.hub.files
            else {"type": "directory", "path": name, "oid": "0"}
            for name in sorted(listed)
        ]

    def _send_file(self, content: bytes, body: bool) -> None:
        headers = {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "bytes=0-")
        start, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        is_part = start > 0 or last < len(content) - 1
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        self._send(206 if is_part else 200, content[start : last + 1], headers, body, may_break=True)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, may_break: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        if may_break and self.hub.break_after:
            content = content[: self.hub.break_after.pop(0)]
            self.close_connection = True
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, as one that is killed does, is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve the Hub at `hub.url` for the duration of the context."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
