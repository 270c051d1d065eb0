"""Access checks for HTTP and websockets: the Host header, the page's origin and the API key.

A page of another site can make a browser send requests to localhost, or point its own domain name at it (DNS
rebinding). The first are recognized by their Origin header, the second by their Host header.
"""

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Forbidden, RequestError, Unauthorized
from server.settings import Settings
from server.web.answers import answer

# Browsers cannot set headers on a websocket, so they send the key in a subprotocol with this prefix.
KEY_PROTOCOL = "openai-insecure-api-key."
# These paths reveal no secrets and change nothing.
_PUBLIC_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json", "/favicon.ico"})
_PUBLIC_PREFIXES = ("/static/", "/docs-assets/")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Rejects unauthorized requests before their bodies are read, and websockets before they are accepted."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self._hosts = frozenset(host.lower() for host in ("localhost", settings.host, *settings.allowed_hosts))
        self._origins = frozenset(settings.allowed_origins)
        self._keys = [key.get_secret_value().encode() for key in settings.accepted_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(scope, headers)
            self._check_key(scope, headers)
        except RequestError as error:
            return await _refuse(error, scope, receive, send)
        return await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        host = _hostname(headers.get("host", ""))
        if len(headers.getlist("host")) != 1 or not (host in self._hosts or _is_address(host)):
            raise Forbidden(f"Host {host[:80]!r} is not allowed; add it to CANARY_ALLOWED_HOSTS to allow it.")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Allow pages from this server and from the allowed origins. Browsers always send the page's origin."""
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return
        page = _host_and_port(origin)
        if page is None or page != _host_and_port(f"{origin.partition(':')[0]}://{headers['host']}"):
            raise Forbidden(f"Origin {origin[:80]!r} is not allowed; add it to CANARY_ALLOWED_ORIGINS to allow it.")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        is_public = scope["type"] == "http" and (path in _PUBLIC_PATHS or path.startswith(_PUBLIC_PREFIXES))
        if not self._keys or is_public:
            return
        given = _api_key(scope, headers)
        if given is None:
            raise Unauthorized("An API key is required; send it as the header: Authorization: Bearer KEY")
        # Compare with every key in constant time, so that timing reveals nothing.
        if sum(secrets.compare_digest(given, key) for key in self._keys) == 0:
            raise Unauthorized("The API key is not valid.")


def _api_key(scope: Scope, headers: Headers) -> bytes | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip().encode("latin-1", "replace")
    if scope["type"] == "websocket":
        for protocol in scope.get("subprotocols", ()):
            if protocol.startswith(KEY_PROTOCOL):
                return protocol.removeprefix(KEY_PROTOCOL).encode("latin-1", "replace")
    return None


def _hostname(host: str) -> str:
    """The host in lower case and without its port: `localhost`, `127.0.0.1`, `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    # Anyone can point a domain name here. An address cannot be redirected.
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_and_port(origin: str) -> tuple[str | None, int | None] | None:
    """The host and port of an origin; None for an origin without a host, such as "null"."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    response = answer(error)
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        start = {"status": response.status_code, "headers": response.raw_headers}
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": response.body})
    else:
        await send({"type": "websocket.close", "code": 1008})
