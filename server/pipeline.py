"""From an upload to a transcript; what every route that takes a file shares."""

import asyncio
from collections.abc import Coroutine
from typing import Any, BinaryIO, TypeVar

import anyio.to_thread
from fastapi import Request

from model.generate import DecodingOptions
from model.prompt import Task
from model.transcript import Transcript

from .audio import AudioLimits, decode
from .engine import Engine
from .errors import ClientGone
from .settings import Settings

T = TypeVar("T")


def audio_limits(settings: Settings) -> AudioLimits:
    return AudioLimits(settings.max_audio_s, settings.max_sample_rate, settings.max_channels)


async def transcribe_upload(
    request: Request, file: BinaryIO, task: Task, options: DecodingOptions | None = None
) -> Transcript:
    """Decode the file beside the event loop and have the engine transcribe it, unless the caller hangs up first."""
    engine: Engine = request.app.state.engine
    engine.check(task)
    limits = audio_limits(request.app.state.settings)
    waveform = await anyio.to_thread.run_sync(decode, file, limits)
    return await unless_disconnected(request, engine.transcribe(waveform, task, options))


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller hangs up. The body must have been read."""
    working = asyncio.ensure_future(work)
    hung_up = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("The caller hung up.")
        return working.result()
    finally:
        for task in (working, hung_up):
            task.cancel()
        await asyncio.gather(working, hung_up, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
