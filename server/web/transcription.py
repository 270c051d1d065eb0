"""From an upload to its transcription; what every route that takes a file shares."""

import time
from dataclasses import replace
from typing import BinaryIO

from fastapi import Request

from model.task import Task
from server.audio.decode import AudioLimits, decode_blocks
from server.longform.recording import transcribe_recording
from server.longform.transcribe import OnProgress, Transcription


async def transcribe_upload(
    request: Request,
    file: BinaryIO,
    task: Task,
    model: str | None = None,
    on_progress: OnProgress | None = None,
    shorten_context: bool = False,
    detect_each: bool = False,
) -> Transcription:
    """The file's transcription by `model`, counted in the metrics. For the options see `transcribe_recording`."""
    state, began = request.app.state, time.monotonic()
    async with state.engines.use(model) as engine:
        done = await transcribe_recording(
            engine,
            decode_blocks(file, AudioLimits.from_settings(state.settings)),
            task,
            state.settings,
            on_progress=on_progress,
            detect_each=detect_each,
            shorten_context=shorten_context,
        )
    # With the time that the model took to load.
    timing = replace(done.timing, total_s=time.monotonic() - began)
    state.metrics.count_transcription(done.duration, timing.total_s, timing.audio_decode_s, timing)
    return replace(done, timing=timing)
