"""From an upload to a transcript; what every route that takes a file shares."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from model.prompt import AUTO, Task
from model.transcript import Segment, Transcript

from .audio import AudioLimits, Blocks, decode_blocks
from .cutting import Cutting
from .engine import Engine
from .errors import ClientGone, RequestError
from .longform import Progress, Transcription, transcribe_audio
from .settings import Settings

T = TypeVar("T")
# How much of the decoder's length a context may take.
CONTEXT_SHARE = 0.25
Told = Callable[[Progress], None]


@dataclass(frozen=True)
class Result:
    """A transcription and what it took, in seconds."""

    transcription: Transcription
    audio_decode_s: float
    total_s: float

    @property
    def transcript(self) -> Transcript:
        return self.transcription.transcript

    def timing_dict(self) -> dict[str, float]:
        """Stages in seconds, those of an audio's pieces added up, and total_s as the clock on the wall has it."""
        timing, audio_s = self.transcription.timing, self.transcript.duration
        seconds = {
            "queue_s": timing.queue_s,
            "audio_decode_s": self.audio_decode_s,
            "features_s": timing.features_s,
            "encode_s": timing.encode_s,
            "decode_s": timing.decode_s,
            "total_s": self.total_s,
            "audio_s": audio_s,
            "real_time_factor": self.total_s / audio_s if audio_s else 0.0,
        }
        return {name: round(value, 4) for name, value in seconds.items()}


def audio_limits(settings: Settings) -> AudioLimits:
    return AudioLimits(settings.max_audio_s, settings.max_sample_rate, settings.max_channels)


def chosen_cutting(settings: Settings) -> Cutting | None:
    """The pieces that longer audio is cut into; None leaves them to the model."""
    return Cutting.up_to(settings.pass_s) if settings.pass_s else None


async def transcribe_file(
    request: Request,
    file: BinaryIO,
    task: Task,
    model: str | None = None,
    on_progress: Told | None = None,
    lenient: bool = False,
    detect_each: bool = False,
) -> Result:
    """The file's sound, decoded beside the event loop as it is needed, through the engine of `model`.

    lenient: leave out what of a context the model has no place for; detect_each: see `transcribe_audio`.
    """
    state = request.app.state
    began = time.monotonic()
    async with state.engines.use(model) as engine:
        task = with_fitting_context(task, engine, lenient)
        engine.check(task)
        blocks = Blocks(decode_blocks(file, audio_limits(state.settings)))
        try:
            transcription = await transcribe_audio(
                engine,
                blocks,
                task,
                on_progress=on_progress,
                cutting=chosen_cutting(state.settings),
                loop_guard=state.settings.loop_guard,
                detect_each=detect_each,
            )
        finally:
            await asyncio.to_thread(blocks.close)
        if transcription.transcript.language == AUTO:
            transcription = _in_some_language(transcription, engine)
    result = Result(transcription, blocks.decode_s, time.monotonic() - began)
    state.metrics.count_transcription(
        result.transcript.duration, result.total_s, result.audio_decode_s, transcription.timing
    )
    return result


def with_fitting_context(task: Task, engine: Engine, lenient: bool) -> Task:
    """The task with a context that leaves the text its room: if `lenient` its end, as much as fits.

    Raises RequestError for one that is too long.
    """
    info = engine.info
    if not task.context or not info or not info.tokenizer:
        return task
    if lenient and info.config.prompt_format == "canary":
        return replace(task, context="")
    # Special tokens are not for callers to write.
    words = task.context.replace("<|", "< |").split()
    language = task.target if task.target in info.config.languages else info.config.languages[0]
    most = int(info.config.decoder.max_sequence_length * CONTEXT_SHARE)
    while (tokens := len(info.tokenizer.encode(" ".join(words), language))) > most:
        if not lenient:
            raise RequestError(f"prompt: it has {tokens} tokens; possible: up to {most}.", "prompt")
        words = words[max(1, len(words) // 8) :]
    return replace(task, context=" ".join(words))


def _in_some_language(transcription: Transcription, engine: Engine) -> Transcription:
    """Where nothing was said, no language was found; clients want one all the same."""
    languages = engine.info.config.languages if engine.info else ()
    language = "en" if "en" in languages or not languages else languages[0]
    transcript = transcription.transcript
    target = language if transcript.target_language == AUTO else transcript.target_language
    return replace(transcription, transcript=replace(transcript, language=language, target_language=target))


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
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


async def progress_of(work: Callable[[Told], Awaitable[Result]]) -> AsyncIterator[list[Segment] | Result]:
    """New segments as they are ready, and at last the result. `work` is cancelled with the iterator."""
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[list[Segment] | None] = asyncio.Queue()

    def tell(progress: Progress) -> None:
        if progress.segments:
            loop.call_soon_threadsafe(told.put_nowait, list(progress.segments))

    working = asyncio.ensure_future(work(tell))
    working.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (segments := await told.get()) is not None:
            yield segments
        yield await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def event_stream(request: Request, events: AsyncIterator[str], write_error: Callable[[Exception], str]) -> Any:
    """The events as a response of server-sent events.

    The first is waited for, so that what can be refused at once is refused with its own status; what fails later can
    only be told in an event.
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


def language_source(task: Task, given: bool, result: Result) -> str:
    """Where a transcript's language is from: "detected", "request", or "default" when it was only assumed."""
    if task.language == AUTO:
        return "detected" if result.transcription.detection else "default"
    return "request" if given else "default"
