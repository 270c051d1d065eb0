"""Figures for long audio: errors against the sentences alone, seams, word times, languages, memory and time.

python -m tests.long.measure errors --seconds 3600
python -m tests.long.measure languages
python -m tests.long.measure size --minutes 10 60 240
"""

import argparse
import asyncio
import random
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.hub import resolve
from model.canary import Canary
from model.prompt import Task
from server.cutting import cut
from server.engine import Engine
from server.longform import Transcription, cutting_for, transcribe_audio
from tests.long.talk import Talk, normal, pairs, talk, word_error_rate
from tests.toy.grammar import LANGUAGES, sentence
from tests.toy.speech import speak


async def errors(engine: Engine, options: argparse.Namespace) -> None:
    """Word error rates: every sentence alone; all of them in one audio, cut at silences; and by overlaps alone."""
    for language in options.languages:
        said = talk(language, options.seconds)
        words = normal(said.words)
        for times in ("word", "none"):
            alone = [
                word
                for waveform, _ in said.sentences
                for word in (await engine.transcribe(waveform, Task(language, timestamps=times))).text.split()
            ]
            print(f"{language}, times {times}: {len(words)} words, alone {word_error_rate(words, normal(alone)):.2%}")
            cutting = cutting_for(engine)
            for name, rules in (("silences", cutting), ("overlaps", replace(cutting, at_silences=False))):
                began = time.monotonic()
                done = await transcribe_audio(engine, said.waveform, Task(language, timestamps=times), cutting=rules)
                took = time.monotonic() - began
                found = normal(done.transcript.text.split())
                seams = [piece.start_s for piece in cut([said.waveform], rules)][1:]
                doubled, lost = at_seams(said, done, seams) if times == "word" else ("", "")
                print(
                    f"  {name}: {word_error_rate(words, found):.2%} in {took:.0f} s, {len(seams)} seams, "
                    f"doubled {doubled}, lost {lost}, uncovered {len(done.uncovered)}; {time_errors(said, done)}",
                    flush=True,
                )


def at_seams(said: Talk, done: Transcription, seams: list[float]) -> tuple[int, int]:
    """Words too many and too few within 1.5 s of a seam, by alignment."""
    written = [word for segment in done.transcript.segments for word in segment.words]
    doubled = lost = 0
    near = np.array(seams)
    for i, j in pairs(normal(said.words), normal([word.word for word in written])):
        at = said.spoken[i][1] if i is not None else written[j].start  # type: ignore[index]
        if (i is None or j is None) and len(near) and np.abs(near - at).min() < 1.5:
            doubled, lost = doubled + (i is None), lost + (j is None)
    return doubled, lost


def time_errors(said: Talk, done: Transcription) -> str:
    written = [word for segment in done.transcript.segments for word in segment.words]
    if not written:
        return "no times"
    found = []
    reference, hypothesis = normal(said.words), normal([word.word for word in written])
    for i, j in pairs(reference, hypothesis):
        if i is not None and j is not None and reference[i] == hypothesis[j]:
            found += [abs(said.spoken[i][1] - written[j].start), abs(said.spoken[i][2] - written[j].end)]
    e = 1000 * np.array(found)
    return f"{done.timestamps_source}: median {np.median(e):.0f} ms, within 200 ms {np.mean(e <= 200):.1%}"


async def languages(engine: Engine, options: argparse.Namespace) -> None:
    """Share of unseen sentences whose language is found, and a file that changes it."""
    for language in options.languages:
        rng = random.Random(5)
        right = 0
        for _ in range(options.count):
            waveform, _ = speak(sentence(rng, "test").words(language), language, rng=rng)
            done = await transcribe_audio(engine, waveform, Task("auto"))
            right += done.detection is not None and done.detection.language == language
        print(f"{language}: {right} of {options.count}", flush=True)
    said = [talk(language, 12, pauses_s=(0.6,)) for language in ("en", "fr", "de", "es", "en")]
    done = await transcribe_audio(engine, np.concatenate([t.waveform for t in said]), Task("auto"), detect_each=True)
    words = normal([word for t in said for word in t.words])
    print(f"changing: {word_error_rate(words, normal(done.transcript.text.split())):.1%} wrong")
    for segment in done.transcript.segments:
        print(f"  {segment.start:6.1f} {segment.end:6.1f} {segment.language} {segment.text}")


async def size(engine: Engine, options: argparse.Namespace) -> None:
    """Time and the most memory for files of many lengths, decoded as they are needed."""
    said = talk(options.languages[0], 300).waveform
    await transcribe_audio(engine, said, Task(options.languages[0]))

    def blocks(minutes: float):
        for _ in range(round(minutes / 5)):
            for first in range(0, len(said), 1 << 16):
                yield said[first : first + (1 << 16)].copy()

    for minutes in options.minutes:
        before, began = peak_mb(), time.monotonic()
        done = await transcribe_audio(engine, blocks(minutes), Task(options.languages[0], timestamps="word"))
        print(
            f"{done.transcript.duration / 60:.0f} min: {time.monotonic() - began:.0f} s, "
            f"at most {peak_mb() - before:.0f} MB more than before, {peak_mb():.0f} MB in all",
            flush=True,
        )


def peak_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("errors", "languages", "size"))
    parser.add_argument("--model", default="toy")
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES))
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60, 240])
    options = parser.parse_args()
    engine = Engine(lambda: Canary.load(Path(resolve(options.model, dtype="float32")), "float32"))
    await engine.start()
    await {"errors": errors, "languages": languages, "size": size}[options.what](engine, options)
    await engine.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
