"""`canary evaluate` as a user runs it, on toy speech in a voice that the toy was not trained on."""

import json
import random
import re
import signal
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from server.audio.decode import AudioLimits, decode
from server.cli.evaluate.audio import utterance_blocks
from server.cli.evaluate.manifests import Utterance
from server.cli.evaluate.scoring import normalized
from server.errors import AudioError
from tests.toy.grammar import sentence
from tests.toy.speech import SAMPLE_RATE, UNSEEN_VOICES, speak

from .conftest import SAMPLES


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Eight utterances in two languages, noisy enough that some words are misheard."""
    folder, draw = tmp_path_factory.mktemp("speech"), random.Random(3)
    lines = []
    for place in range(8):
        language, said = ("en", "de")[place % 2], sentence(draw, "test")
        voice = UNSEEN_VOICES[language][place // 2 % 2]
        waveform, _ = speak(said.words(language), language, voice, draw, noise=0.03)
        soundfile.write(folder / f"{place}.wav", waveform, SAMPLE_RATE)
        lines.append({"audio_filepath": f"{place}.wav", "text": said.text(language), "source_lang": language})
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def jiwers_percent(lines: list[dict]) -> float:
    pairs = [[normalized(line[field], line["source_lang"]) for line in lines] for field in ("text", "pred_text")]
    return 100 * jiwer.wer(*pairs)


def test_the_word_error_rate_of_toy_speech_is_jiwers_and_a_shuffled_run_is_found_to_be_worse(
    run_canary, manifest, tmp_path
):
    made = run_canary("evaluate", manifest, "--output", "pred.jsonl", "--json")
    assert made.returncode == 0, made.stderr
    found, lines = json.loads(made.stdout), records(tmp_path / "pred.jsonl")
    assert [line["audio_filepath"] for line in lines] == [f"{place}.wav" for place in range(8)]
    overall = found["transcription"]["all"]
    assert overall["wer_percent"] == pytest.approx(jiwers_percent(lines), abs=1e-3)
    low, high = overall["wer_interval"]
    assert 0 <= low <= overall["wer_percent"] <= high < 100
    assert (found["failed"], found["model"]["name"], found["model"]["dtype"]) == (0, "toy", "float32")
    assert re.fullmatch(r"[0-9a-f]{32}", found["model"]["weights"])
    assert {line["system"] for line in lines} == {found["system"]}
    assert found["wall_s"] == pytest.approx(sum(line["time"] for line in lines), abs=0.01)
    length_s = sum(soundfile.info(manifest.parent / f"{place}.wav").duration for place in range(8))
    assert found["audio_s"] == pytest.approx(length_s, abs=0.01)

    # Each text beside another utterance of its language.
    texts = [line["pred_text"] for line in lines]
    shuffled = [line | {"pred_text": text} for line, text in zip(lines, texts[2:] + texts[:2], strict=True)]
    other = tmp_path / "shuffled.jsonl"
    other.write_text("".join(json.dumps(line) + "\n" for line in shuffled), encoding="utf-8")
    compared = run_canary("evaluate", "pred.jsonl", "--score-only", "--against", other, "--json")
    difference = json.loads(compared.stdout)["against"]["differences"][0]
    assert (difference["name"], difference["verdict"]) == ("WER", "better")
    assert difference["there"] == pytest.approx(jiwers_percent(shuffled), abs=1e-3)
    assert "There is a difference: WER is better here" in compared.stderr


def test_files_that_fail_are_counted_and_the_exit_code_is_1(run_canary, tmp_path):
    lines = [
        {"audio_filepath": str(SAMPLES / "en.flac"), "text": "The woman sees ten new houses.", "lang": "en"},
        {"audio_filepath": "gone.wav", "text": "The man sleeps.", "lang": "en"},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = run_canary("evaluate", "test.jsonl")
    assert made.returncode == 1
    assert "2 utterances, 1 failed, 0 empty" in made.stdout
    assert made.stderr == "canary: test.jsonl, line 2: gone.wav: No such file or directory\n"


def test_a_folder_of_recordings_with_their_texts_is_evaluated_and_parts_of_files_too(run_canary, tmp_path):
    samples = json.loads((SAMPLES / "samples.json").read_text())
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("en.flac", "de.flac"):
        (folder / name).write_bytes((SAMPLES / name).read_bytes())
        (folder / name).with_suffix(".txt").write_text(samples[name]["text"], encoding="utf-8")
    whole = run_canary("evaluate", folder, "--json", "--max-wer", "0")
    assert whole.returncode == 0, whole.stderr
    # The language is detected.
    assert set(json.loads(whole.stdout)["transcription"]) == {"de", "en", "all"}
    part = {"audio_filepath": str(folder / "en.flac"), "offset": 6.5, "duration": 2.0, "text": "The man sleeps."}
    (tmp_path / "parts.jsonl").write_text(json.dumps(part) + "\n")
    assert run_canary("evaluate", "parts.jsonl", "--language", "en", "--max-wer", "0").returncode == 0


@pytest.mark.parametrize("name", ["speech.wav", "speech.flac", "speech.ogg"])
def test_a_part_of_a_file_is_what_lies_between_its_offset_and_duration(tmp_path, name):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 20).astype(np.float32)
    soundfile.write(tmp_path / name, sound, 16000)
    whole = decode(tmp_path / name)
    for offset_s, duration_s in ((0.0, 1.0), (7.25, 3.5), (18.0, None), (19.5, 5.0)):
        utterance = Utterance(name, tmp_path / name, "", offset_s=offset_s, duration_s=duration_s)
        part = np.concatenate(list(utterance_blocks(utterance, AudioLimits())))
        first = int(offset_s * 16000)
        expected = whole[first : None if duration_s is None else first + int(duration_s * 16000)]
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("name", ["speech.wav", "speech.ogg"])
def test_an_offset_beyond_the_end_is_an_error(tmp_path, name):
    soundfile.write(tmp_path / name, np.zeros(16000, np.float32), 16000)
    utterance = Utterance(name, tmp_path / name, "", offset_s=2.0, duration_s=1.0)
    with pytest.raises(AudioError, match="The offset, 2 s, is beyond the end of the audio"):
        list(utterance_blocks(utterance, AudioLimits()))


INTERRUPTED = """
import asyncio, time
import server.cli.evaluate.predictions as predictions
from server.__main__ import main

add, calls = predictions.PredictionFile.add, []

def added(self, prediction):
    add(self, prediction)
    calls.append(prediction)
    if len(calls) == 3:
        print("here", flush=True)
        while not any(task.cancelling() for task in asyncio.all_tasks()):
            time.sleep(0.01)

predictions.PredictionFile.add = added
main()
"""


def test_an_interrupted_evaluation_goes_on_where_it_stopped(start, run_canary, manifest, tmp_path):
    with start(INTERRUPTED, "evaluate", manifest, "-o", "pred.jsonl") as process:
        assert process.stdout.readline() == "here\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "canary: interrupted\n")
    before = {line["audio_filepath"]: line for line in records(tmp_path / "pred.jsonl")}
    assert len(before) == 3
    resumed = run_canary("evaluate", manifest, "-o", "pred.jsonl", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    after = records(tmp_path / "pred.jsonl")
    assert [line["audio_filepath"] for line in after] == [f"{place}.wav" for place in range(8)]
    # What was there was not made again: its times are the first run's.
    assert {line["audio_filepath"]: line for line in after if line["audio_filepath"] in before} == before
