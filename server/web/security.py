"""Who may speak to the server, over HTTP and websockets alike: the right host, no foreign page, a known key.

A web page of another site can make a browser send requests to localhost, and can point a name of its own at it (DNS
rebinding). The first carries the page's Origin, the second the page's name as Host.
"""

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Forbidden, RequestError, Unauthorized
from server.settings import Settings
from server.web.answers import answer

# The subprotocol in which browsers, which cannot set headers on a websocket, bring a key.
KEY_PROTOCOL = "openai-insecure-api-key."
# Say nothing that is secret, and change nothing.
_WITHOUT_KEY = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json", "/favicon.ico"})
_WITHOUT_KEY_BELOW = ("/static/", "/docs-assets/")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Refuses, before anything of a request is read, those who may not come in; websockets before they are accepted."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self._hosts = frozenset(host.lower() for host in ("localhost", settings.host, *settings.allowed_hosts))
        self._origins = frozenset(settings.allowed_origins)
        self._keys = [key.get_secret_value().encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(scope, headers)
            self._check_key(scope, headers)
        except RequestError as refused:
            return await _refuse(refused, scope, receive, send)
        return await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        host = _hostname(headers.get("host", ""))
        if len(headers.getlist("host")) != 1 or not (host in self._hosts or _is_address(host)):
            raise Forbidden(f"The host {host[:80]!r} is not one that this server goes by; see CANARY_ALLOWED_HOSTS.")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """A page may use the server it came from, or one that allows it. Browsers always say which page asks."""
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return
        place = _place(origin)
        if place is None or place != _place(f"{origin.partition(':')[0]}://{headers['host']}"):
            raise Forbidden(f"Pages of {origin[:80]!r} may not use this server; see CANARY_ALLOWED_ORIGINS.")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        is_open = scope["type"] == "http" and (path in _WITHOUT_KEY or path.startswith(_WITHOUT_KEY_BELOW))
        if not self._keys or is_open:
            return
        given = _key_given(scope, headers)
        if given is None:
            raise Unauthorized("An API key is needed: send it as the header Authorization: Bearer KEY.")
        # All are compared, each in constant time: how long it takes tells nothing.
        if sum(secrets.compare_digest(given, key) for key in self._keys) == 0:
            raise Unauthorized("The API key is not one of this server's.")


def _key_given(scope: Scope, headers: Headers) -> bytes | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip().encode("latin-1", "replace")
    if scope["type"] == "websocket":
        for protocol in scope.get("subprotocols", ()):
            if protocol.startswith(KEY_PROTOCOL):
                return protocol.removeprefix(KEY_PROTOCOL).encode("latin-1", "replace")
    return None


def _hostname(host: str) -> str:
    """Without the port, in lower case: `localhost`, `127.0.0.1`, `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    # A name can be made to point here; an address is what it is.
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _place(origin: str) -> tuple[str | None, int | None] | None:
    """Host name and port of an origin; None for "null" and the like."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None


async def _refuse(refused: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    response = answer(refused)
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        start = {"status": response.status_code, "headers": response.raw_headers}
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": response.body})
    else:
        await send({"type": "websocket.close", "code": 1008})
