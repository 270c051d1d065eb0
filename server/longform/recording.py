"""A whole recording, from its decoded blocks to its transcription: the one way that HTTP, the command line and Python
share."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from model.decoding import DecodingOptions
from model.task import AUTO, Task
from server.audio.decode import Blocks
from server.engine.thread import INTERACTIVE, Engine
from server.errors import RequestError
from server.longform.cutting import Cutting
from server.longform.transcribe import OnProgress, Transcription, transcribe_audio
from server.settings import Settings
from server.text.warnings import TRUNCATED


async def transcribe_recording(
    engine: Engine,
    blocks: Iterator[np.ndarray],
    task: Task,
    settings: Settings,
    options: DecodingOptions | None = None,
    *,
    priority: int = INTERACTIVE,
    on_progress: OnProgress | None = None,
    detect_each: bool = False,
    shorten_context: bool = False,
    total_s: float | None = None,
) -> Transcription:
    """The transcription of `blocks`, (n,) float32 at 16 kHz, read beside the event loop and closed at the end.

    shorten_context: drop the beginning of a context that is too long instead of raising; for the rest see
    `transcribe_audio`. Raises TaskError and RequestError for what the model cannot do, before a block is read; and
    whatever reading the blocks or running the model raises.
    """
    began = time.monotonic()
    task = with_fitting_context(task, engine, shorten_context)
    engine.check(task)
    sound = Blocks(blocks)
    try:
        done = await transcribe_audio(
            engine,
            sound,
            task,
            options,
            priority=priority,
            on_progress=on_progress,
            cutting=Cutting.from_settings(settings),
            loop_guard=settings.loop_guard,
            detect_each=detect_each,
            total_s=total_s,
        )
    finally:
        await asyncio.to_thread(sound.close)
    if done.language == AUTO:
        done = _in_some_language(done, engine)
    if sound.truncated:
        done = replace(done, truncated=True, warnings=(*done.warnings, TRUNCATED))
    timing = replace(done.timing, audio_decode_s=sound.decode_s, total_s=time.monotonic() - began)
    return replace(done, timing=timing)


def with_fitting_context(task: Task, engine: Engine, shorten: bool) -> Task:
    """The task with a context that leaves room for the text: if `shorten`, as much of its end as fits, or none for a
    model that takes none.

    Raises RequestError for a context that is too long.
    """
    info = engine.info
    if not task.context or not info:
        return task
    most = info.config.context_tokens
    if not most:
        return replace(task, context="") if shorten else task
    # Callers may not write special tokens.
    words = task.context.replace("<|", "< |").split()
    language = task.target if task.target in info.config.languages else info.config.languages[0]
    while (tokens := len(info.tokenizer.encode(" ".join(words), language))) > most:
        if not shorten:
            raise RequestError(f"prompt has {tokens} tokens; at most {most} are supported", "prompt")
        words = words[max(1, len(words) // 8) :]
    return replace(task, context=" ".join(words))


def _in_some_language(done: Transcription, engine: Engine) -> Transcription:
    """Without speech no language was detected, but clients expect one."""
    languages = engine.info.config.languages if engine.info else ()
    language = "en" if "en" in languages or not languages else languages[0]
    target = language if done.target_language == AUTO else done.target_language
    return replace(done, language=language, target_language=target)


def language_source(task: Task, given: bool, done: Transcription) -> str:
    """Where a transcript's language comes from: "request", "detected", or "default" if it was only assumed.

    task: as it was asked for; given: whether the caller named its language.
    """
    if task.language == AUTO:
        return "detected" if done.detection else "default"
    return "request" if given else "default"
