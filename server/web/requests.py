"""What the routes share: the engines, the settings and the upload of a request, the upload's transcription, and work
that is cancelled when the client disconnects."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO, TypeVar, cast

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from model.decoding import DecodingOptions
from model.task import Task, TaskError
from server.audio.decode import AudioLimits, decode_blocks, header_length_s
from server.engine.admission import charged_s
from server.engine.registry import Engines
from server.errors import ClientGone, RequestError, WaitedTooLong
from server.longform.transcribe import OnProgress, transcribe_recording
from server.longform.transcription import Transcription
from server.settings import Settings

# A raw body larger than this is spooled to disk.
_MAX_IN_MEMORY_BYTES = 1 << 20
# Charsets of a form's names and values. Others are not even looked up: not every Python codec can decode any input.
_CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")


@dataclass
class Upload:
    """An uploaded file and its form fields. There are no fields if the file is the raw request body."""

    file: BinaryIO
    fields: list[tuple[str, str]]


# FastAPI would call functions that are not asynchronous in a thread, for every request.
async def get_engines(request: Request) -> Engines:
    return request.app.state.engines


async def get_settings(request: Request) -> Settings:
    return request.app.state.settings


async def get_upload(request: Request) -> AsyncIterator[Upload]:
    """The field `file` of a multipart form, or the raw body (`curl --data-binary @talk.wav`).

    `curl --data-binary` labels its body as a urlencoded form, so any body that is not multipart is taken as the file.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
        if charset.lower() not in _CHARSETS:
            raise RequestError(f"charset {charset[:40]!r} is not supported; must be one of {', '.join(_CHARSETS)}")
        async with request.form(max_files=1, max_fields=100) as form:
            fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("The form has no file; send one as: -F file=@talk.wav", "file")
            yield Upload(cast(BinaryIO, file.file), fields)
    else:
        with SpooledTemporaryFile(max_size=_MAX_IN_MEMORY_BYTES) as body:
            async for chunk in request.stream():
                body.write(chunk)
            if body.tell() == 0:
                raise RequestError("The body is empty; send a file as: --data-binary @talk.wav", "file")
            yield Upload(cast(BinaryIO, body), [])


EnginesDep = Annotated[Engines, Depends(get_engines)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
UploadDep = Annotated[Upload, Depends(get_upload)]

T = TypeVar("T")


async def transcribe_upload(
    request: Request,
    file: BinaryIO,
    task: Task,
    model: str | None = None,
    on_progress: OnProgress | None = None,
    shorten_context: bool = False,
    detect_each: bool = False,
    options: DecodingOptions | None = None,
) -> Transcription:
    """The file's transcription by `model`, counted in the metrics. For the options see `transcribe_recording`."""
    state, began = request.app.state, time.monotonic()
    limits = AudioLimits.from_settings(state.settings)
    async with state.engines.use(model) as engine:
        total_s = await asyncio.to_thread(header_length_s, file)
        admission = state.engines.named(model).admission
        try:
            done = await transcribe_recording(
                engine,
                decode_blocks(file, limits),
                task,
                state.settings,
                options,
                on_progress=on_progress,
                detect_each=detect_each,
                shorten_context=shorten_context,
                total_s=total_s,
                admission=admission,
                charged_s=charged_s(total_s, file.seek(0, io.SEEK_END), limits.max_s),
                start_by=began + state.settings.max_wait_s,
            )
        except TaskError as error:
            raise state.engines.with_suggestion(error) from None
        except WaitedTooLong:
            raise WaitedTooLong(admission.retry_after_s) from None
    # Including the time that the model took to load.
    timing = replace(done.timing, total_s=time.monotonic() - began)
    state.metrics.count_transcription(done.duration, timing.total_s, timing.audio_decode_s, timing)
    return replace(done, timing=timing)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects. The body must have been read."""
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("The client disconnected.")
        return working.result()
    finally:
        for task in (working, disconnected):
            task.cancel()
        await asyncio.gather(working, disconnected, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
