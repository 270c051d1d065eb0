"""Streamed answers: segments as server-sent events, each as soon as it is ready."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from model.transcript import Segment
from server.longform.transcribe import OnProgress, Progress
from server.web.requests import unless_disconnected

T = TypeVar("T")


async def progress_of(work: Callable[[OnProgress], Awaitable[T]]) -> AsyncIterator[list[Segment] | T]:
    """New segments as they are ready, and finally the result. `work` is cancelled with the iterator."""
    loop = asyncio.get_running_loop()
    updates: asyncio.Queue[list[Segment] | None] = asyncio.Queue()

    def tell(progress: Progress) -> None:
        if progress.segments:
            loop.call_soon_threadsafe(updates.put_nowait, list(progress.segments))

    working = asyncio.ensure_future(work(tell))
    working.add_done_callback(lambda _: updates.put_nowait(None))
    try:
        while (segments := await updates.get()) is not None:
            yield segments
        yield await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def event_stream(
    request: Request, events: AsyncIterator[str], write_error: Callable[[Exception], str]
) -> StreamingResponse:
    """The events as a response of server-sent events.

    Waits for the first event, so that an early error gets its own HTTP status. A later error can only be an event.
    """
    first = await unless_disconnected(request, anext(events))

    async def body() -> AsyncIterator[str]:
        async with aclosing(events) as rest:  # type: ignore[type-var]
            yield first
            try:
                async for event in rest:
                    yield event
            except Exception as error:
                yield write_error(error)

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)
