"""Refuses uploads that no model has room for, as cheaply as can be: before FastAPI is asked and a body is read."""

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from server.engine.registry import Engines
from server.errors import ModelNotFound, QueueFull
from server.web.answers import answer

UPLOADS = frozenset({"/transcribe", "/translate", "/v1/audio/transcriptions", "/v1/audio/translations"})


class Room:
    """Answers an upload with 503 if no model that it may be for can admit another recording."""

    def __init__(self, app: ASGIApp, engines: Engines):
        self.app = app
        self._engines = engines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_upload = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in UPLOADS
        if is_upload and (full := self._refusal(QueryParams(scope["query_string"]).get("model"))):
            return await answer(full)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _refusal(self, model: str | None) -> QueueFull | None:
        """model: from the query; a form may name one, too."""
        try:
            served = [self._engines.named(model)] if model else self._engines.models
        except ModelNotFound:
            return None
        refusals = []
        for each in served:
            try:
                each.admission.check()
                return None
            except QueueFull as full:
                refusals.append(full)
        return min(refusals, key=lambda full: full.retry_after_s)
