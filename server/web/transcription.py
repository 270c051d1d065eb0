"""From an upload to a transcript; what every route that takes a file shares."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import BinaryIO

from fastapi import Request

from model.task import AUTO, Task
from model.transcript import Transcript
from server.audio.decode import AudioLimits, Blocks, decode_blocks
from server.engine.thread import Engine
from server.errors import RequestError
from server.longform.cutting import Cutting
from server.longform.transcribe import OnProgress, Transcription, transcribe_audio


@dataclass(frozen=True)
class FileResult:
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


async def transcribe_file(
    request: Request,
    file: BinaryIO,
    task: Task,
    model: str | None = None,
    on_progress: OnProgress | None = None,
    lenient: bool = False,
    detect_each: bool = False,
) -> FileResult:
    """The file's sound, decoded beside the event loop as it is needed, through the engine of `model`.

    lenient: leave out what of a context the model has no place for; detect_each: see `transcribe_audio`.
    """
    state = request.app.state
    began = time.monotonic()
    async with state.engines.use(model) as engine:
        task = with_fitting_context(task, engine, lenient)
        engine.check(task)
        blocks = Blocks(decode_blocks(file, AudioLimits.from_settings(state.settings)))
        try:
            transcription = await transcribe_audio(
                engine,
                blocks,
                task,
                on_progress=on_progress,
                cutting=Cutting.from_settings(state.settings),
                loop_guard=state.settings.loop_guard,
                detect_each=detect_each,
            )
        finally:
            await asyncio.to_thread(blocks.close)
        if transcription.transcript.language == AUTO:
            transcription = _in_some_language(transcription, engine)
    result = FileResult(transcription, blocks.decode_s, time.monotonic() - began)
    state.metrics.count_transcription(
        result.transcript.duration, result.total_s, result.audio_decode_s, transcription.timing
    )
    return result


def with_fitting_context(task: Task, engine: Engine, lenient: bool) -> Task:
    """The task with a context that leaves the text its room: if `lenient` its end, as much as fits.

    Raises RequestError for one that is too long.
    """
    info = engine.info
    if not task.context or not info:
        return task
    most = info.config.context_tokens
    if not most:
        return replace(task, context="") if lenient else task
    # Special tokens are not for callers to write.
    words = task.context.replace("<|", "< |").split()
    language = task.target if task.target in info.config.languages else info.config.languages[0]
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


def language_source(task: Task, given: bool, result: FileResult) -> str:
    """Where a transcript's language is from: "detected", "request", or "default" when it was only assumed."""
    if task.language == AUTO:
        return "detected" if result.transcription.detection else "default"
    return "request" if given else "default"
