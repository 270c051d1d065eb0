"""LiveKit's OpenAI speech-to-text plug-in on a file: python livekit_client.py BASE_URL WAV → its events, in JSON."""

import asyncio
import json
import sys
import wave

import aiohttp
from livekit import rtc
from livekit.plugins import openai


async def main(base_url: str, path: str) -> None:
    with wave.open(path) as file:
        pcm, rate = file.readframes(file.getnframes()), file.getframerate()
    async with aiohttp.ClientSession() as session:
        stt = openai.STT(
            model="gpt-4o-transcribe", language="en", base_url=base_url, api_key="not-needed", use_realtime=True
        )
        stt._session = session
        stream = stt.stream()
        for at in range(0, len(pcm), rate // 10 * 2):
            piece = pcm[at : at + rate // 10 * 2]
            stream.push_frame(rtc.AudioFrame(piece, rate, 1, len(piece) // 2))
        finals = 0
        async for event in stream:
            text = event.alternatives[0].text if event.alternatives else ""
            print(json.dumps({"type": str(event.type.value), "text": text}), flush=True)
            finals += event.type.value == "final_transcript"
            if finals == 2:
                break
        await stream.aclose()
        await stt.aclose()


asyncio.run(main(*sys.argv[1:]))
