"""Transcribe a file with litellm and print each answer as a line of JSON: python litellm_client.py BASE_URL FILE"""

import json
import sys

import litellm
import openai

base_url, path = sys.argv[1:]
for options in (
    {},
    {"response_format": "verbose_json", "timestamp_granularities": ["word"]},
    {"response_format": "srt"},
):
    with open(path, "rb") as file:
        answer = litellm.transcription(
            model="openai/whisper-1", file=file, language="en", api_base=base_url, api_key="none", **options
        )
    print(json.dumps({"text": answer.text, "words": answer.get("words"), "duration": answer.get("duration")}))
try:
    with open(__file__, "rb") as file:
        litellm.transcription(model="openai/whisper-1", file=file, api_base=base_url, api_key="none")
except openai.BadRequestError as error:
    print(json.dumps({"error": str(error)}))
