"""pipecat's OpenAI realtime service in a pipeline: python pipecat_client.py BASE_URL WAV server|manual → JSON lines."""

import asyncio
import json
import sys
import wave

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.stt import OpenAIRealtimeSTTService

logger.remove()


class Printer(FrameProcessor):
    def __init__(self, finals: int):
        super().__init__()
        self.left = finals
        self.done = asyncio.Event()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InterimTranscriptionFrame | TranscriptionFrame):
            print(json.dumps({"type": type(frame).__name__, "text": frame.text}), flush=True)
            self.left -= isinstance(frame, TranscriptionFrame)
            if self.left == 0:
                self.done.set()
        await self.push_frame(frame, direction)


async def main(base_url: str, path: str, turns: str) -> None:
    with wave.open(path) as file:
        pcm, rate = file.readframes(file.getnframes()), file.getframerate()
    by_server = turns == "server"
    stt = OpenAIRealtimeSTTService(
        api_key="not-needed",
        base_url=base_url.replace("http", "ws", 1) + "/realtime",
        turn_detection={"type": "server_vad"} if by_server else False,
        settings=OpenAIRealtimeSTTService.Settings(model="gpt-4o-transcribe"),
    )
    printer = Printer(2 if by_server else 1)
    task = PipelineTask(Pipeline([stt, printer]), params=PipelineParams(audio_in_sample_rate=rate))

    async def speak() -> None:
        await asyncio.sleep(1)
        if not by_server:
            await task.queue_frame(VADUserStartedSpeakingFrame())
        for at in range(0, len(pcm), rate // 10 * 2):
            await task.queue_frame(InputAudioRawFrame(pcm[at : at + rate // 10 * 2], rate, 1))
        if not by_server:
            await task.queue_frame(VADUserStoppedSpeakingFrame())
        await printer.done.wait()
        await task.queue_frame(EndFrame())

    await asyncio.gather(PipelineRunner(handle_sigint=False).run(task), speak())


asyncio.run(main(*sys.argv[1:]))
