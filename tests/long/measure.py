"""Figures for long audio: errors against the sentences alone, seams, word times, languages, memory and time.

python -m tests.long.measure errors --seconds 3600 --languages en de --ways silences overlaps --times word none
python -m tests.long.measure languages
python -m tests.long.measure size --minutes 10 60 240
"""

import argparse
import asyncio
import random
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import server.longform.cutting as cutting_module
import server.longform.transcribe as longform_module
from convert.hub import resolve
from model.canary.model import CanaryModel
from model.task import Task
from server.audio.vad import FRAME, SpeechDetector
from server.engine.thread import Engine
from server.longform.cutting import SAMPLE_RATE
from server.longform.transcribe import Progress, Transcription, cutting_for, transcribe_audio
from tests.long.seams import Noting, Written, at_seams
from tests.long.talk import Pairs, Talk, normal, pairs, talk, word_error_rate
from tests.toy.grammar import LANGUAGES, sentence
from tests.toy.speech import speak


async def errors(engine: Engine, options: argparse.Namespace) -> None:
    """Word error rates: every sentence alone; all of them in one audio, cut at silences; and by overlaps alone."""
    for language in options.languages:
        said = talk(language, options.seconds, seed=options.seed)
        words = normal(said.words)
        began = time.monotonic()
        # Each way asks it the same about the same sound, and it takes longer than the toy.
        chances = SpeechDetector().feed(said.waveform)
        cutting_module.SpeechDetector = partial(HeardBefore, chances)  # type: ignore[misc]
        print(f"{language}: {options.seconds:.0f} s, speech detected in {since(began)}", flush=True)
        for times in options.times:
            task = Task(language, timestamps=times)
            began = time.monotonic()
            alone = await sentences_alone(engine, said, task)
            rate = word_error_rate(words, normal(alone))
            print(f"{language}, times {times}: {len(words)} words, alone {rate:.2%} in {since(began)}", flush=True)
            for way in options.ways:
                cutting = replace(cutting_for(engine), at_silences=way == "silences")
                told = Told(f"  {way}", len(said.waveform) / SAMPLE_RATE)
                pieces: list[Written] = []
                longform_module.Joiner = partial(Noting, pieces)  # type: ignore[misc]
                began = time.monotonic()
                done = await transcribe_audio(engine, said.waveform, task, on_progress=told, cutting=cutting)
                took = since(began)
                found = normal(done.text.split())
                aligned = pairs(words, found)
                wrong = sum(i is None or j is None or words[i] != found[j] for i, j in aligned)
                print(
                    f"  {way}: {wrong / len(words):.2%} in {took}, {len(pieces)} pieces, "
                    f"{at_seams(said, found, aligned, pieces)}, uncovered {len(done.uncovered)}; "
                    f"{time_errors(said, done, aligned)}",
                    flush=True,
                )
                if options.show:
                    print("\n".join(shown(said, found, aligned, [piece.end_s for piece in pieces])), flush=True)


class HeardBefore:
    """A speech detector that is fed what another one was, from the start, and says the same."""

    def __init__(self, chances: list[float]):
        self._chances, self._samples = chances, 0

    def feed(self, samples: np.ndarray) -> list[float]:
        first, self._samples = self._samples // FRAME, self._samples + len(samples)
        return self._chances[first : self._samples // FRAME]


async def sentences_alone(engine: Engine, said: Talk, task: Task) -> list[str]:
    """The words of every sentence, each given to the model by itself, as many at a time as its batch has rows."""
    turn = asyncio.Semaphore(16)

    async def words(waveform: np.ndarray) -> list[str]:
        async with turn:
            return (await engine.transcribe(waveform, task)).text.split()

    return [word for each in await asyncio.gather(*(words(w) for w, _ in said.sentences)) for word in each]


class Told:
    """Takes in how far a transcription is, and prints it now and then."""

    def __init__(self, name: str, total_s: float):
        self._name, self._total_s, self._due_s = name, total_s, 300.0

    def __call__(self, progress: Progress) -> None:
        if progress.done_s >= self._due_s:
            print(f"{self._name}: {progress.done_s:.0f} of {self._total_s:.0f} s", file=sys.stderr, flush=True)
            self._due_s += 300.0


def since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"


def time_errors(said: Talk, done: Transcription, aligned: Pairs) -> str:
    written = [word for segment in done.segments for word in segment.words]
    if not written:
        return "no times"
    found = []
    for i, j in aligned:
        if i is not None and j is not None and normal([said.words[i]]) == normal([written[j].word]):
            found += [abs(said.spoken[i][1] - written[j].start), abs(said.spoken[i][2] - written[j].end)]
    e = 1000 * np.array(found)
    return f"{done.timestamps_source}: median {np.median(e):.0f} ms, within 200 ms {np.mean(e <= 200):.1%}"


def shown(said: Talk, found: list[str], aligned: Pairs, ends_s: list[float]) -> list[str]:
    """A line for each wrong word: when it was said, how far off the nearest end of a piece is, what became of it."""
    lines = []
    words, at = normal(said.words), 0.0
    for n, (i, j) in enumerate(aligned):
        at = said.spoken[i][1] if i is not None else at
        if i is not None and j is not None and words[i] == found[j]:
            continue
        around = [found[k] for _, k in aligned[max(0, n - 3) : n + 4] if k is not None]
        end = min((end - at for end in ends_s), key=abs, default=0.0)
        became = f"{words[i] if i is not None else '+'} → {found[j] if j is not None else '-'}"
        lines.append(f"    {at:8.1f} s, piece ends {end:+5.1f} s: {became:24} … {' '.join(around)} …")
    return lines


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
    print(f"changing: {word_error_rate(words, normal(done.text.split())):.1%} wrong")
    for segment in done.segments:
        print(f"  {segment.start:6.1f} {segment.end:6.1f} {segment.language} {segment.text}")


async def size(engine: Engine, options: argparse.Namespace) -> None:
    """Time, on the clock and of the processor, and the most memory for files of many lengths, decoded as needed."""
    said = talk(options.languages[0], 300).waveform
    await transcribe_audio(engine, said, Task(options.languages[0]))

    def blocks(minutes: float):
        for _ in range(round(minutes / 5)):
            for first in range(0, len(said), 1 << 16):
                yield said[first : first + (1 << 16)].copy()

    for minutes in options.minutes:
        before, began, cpu_s = peak_mb(), time.monotonic(), time.process_time()
        done = await transcribe_audio(engine, blocks(minutes), Task(options.languages[0], timestamps="word"))
        print(
            f"{done.duration / 60:.0f} min: {since(began)}, {time.process_time() - cpu_s:.0f} s of CPU, "
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
    parser.add_argument("--seed", type=int, default=7, help="Which sentences, voices and pauses.")
    parser.add_argument("--ways", nargs="+", choices=("silences", "overlaps"), default=["silences", "overlaps"])
    parser.add_argument("--times", nargs="+", choices=("word", "none"), default=["word", "none"])
    parser.add_argument("--show", action="store_true", help="Print every word that is wrong.")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60, 240])
    options = parser.parse_args()
    engine = Engine(lambda: CanaryModel.load(Path(resolve(options.model, dtype="float32")), "float32"))
    await engine.start()
    await {"errors": errors, "languages": languages, "size": size}[options.what](engine, options)
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main())
