"""Measures long audio: word errors compared with single sentences, seams, word times, languages, memory and time.

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

import numpy as np

import server.longform.cutting as cutting_module
import server.longform.transcribe as longform_module
from convert.hub import resolve
from model.loading import load
from model.task import Task
from server.audio.vad import FRAME, SpeechDetector
from server.engine.thread import Engine
from server.longform.cutting import SAMPLE_RATE
from server.longform.transcribe import Progress, cutting_for, transcribe_audio
from server.longform.transcription import Transcription
from tests.long.seams import PieceText, RecordingJoiner, at_seams
from tests.long.talk import Pairs, Talk, aligned, normalized, talk, word_error_rate
from tests.toy.grammar import LANGUAGES, sentence
from tests.toy.speech import speak


async def errors(engine: Engine, options: argparse.Namespace) -> None:
    """Word error rates of each sentence alone, and of all in one audio cut at silences or with overlaps only."""
    for language in options.languages:
        reference = talk(language, options.seconds, seed=options.seed)
        words = normalized(reference.words)
        began = time.monotonic()
        # All ways of cutting use the same speech probabilities, and the detector takes longer than the toy.
        probabilities = SpeechDetector().feed(reference.waveform)
        cutting_module.SpeechDetector = partial(ReplayedDetector, probabilities)  # type: ignore[misc]
        print(f"{language}: {options.seconds:.0f} s, speech detected in {since(began)}", flush=True)
        for times in options.times:
            task = Task(language, timestamps=times)
            began = time.monotonic()
            alone = await sentences_alone(engine, reference, task)
            rate = word_error_rate(words, normalized(alone))
            print(f"{language}, times {times}: {len(words)} words, alone {rate:.2%} in {since(began)}", flush=True)
            for way in options.ways:
                cutting = replace(cutting_for(engine), at_silences=way == "silences")
                on_progress = ProgressPrinter(f"  {way}", len(reference.waveform) / SAMPLE_RATE)
                pieces: list[PieceText] = []
                longform_module.Joiner = partial(RecordingJoiner, pieces)  # type: ignore[misc]
                began = time.monotonic()
                result = await transcribe_audio(
                    engine, reference.waveform, task, on_progress=on_progress, cutting=cutting
                )
                duration = since(began)
                text = normalized(result.text.split())
                alignment = aligned(words, text)
                wrong = sum(i is None or j is None or words[i] != text[j] for i, j in alignment)
                print(
                    f"  {way}: {wrong / len(words):.2%} in {duration}, {len(pieces)} pieces, "
                    f"{at_seams(reference, text, alignment, pieces)}, uncovered {len(result.uncovered)}; "
                    f"{time_errors(reference, result, alignment)}",
                    flush=True,
                )
                if options.show:
                    ends_s = [piece.end_s for piece in pieces]
                    print("\n".join(wrong_words(reference, text, alignment, ends_s)), flush=True)


class ReplayedDetector:
    """A speech detector that returns stored probabilities for audio fed from its start."""

    def __init__(self, probabilities: list[float]):
        self._probabilities, self._samples = probabilities, 0

    def feed(self, samples: np.ndarray) -> list[float]:
        first, self._samples = self._samples // FRAME, self._samples + len(samples)
        return self._probabilities[first : self._samples // FRAME]


async def sentences_alone(engine: Engine, reference: Talk, task: Task) -> list[str]:
    """The words of all sentences, each transcribed alone, as many at a time as the batch has rows."""
    limit = asyncio.Semaphore(16)

    async def words(waveform: np.ndarray) -> list[str]:
        async with limit:
            return (await engine.transcribe(waveform, task)).text.split()

    sentences = await asyncio.gather(*(words(waveform) for waveform, _ in reference.sentences))
    return [word for sentence_words in sentences for word in sentence_words]


class ProgressPrinter:
    """Prints a transcription's progress after every five minutes of audio."""

    def __init__(self, name: str, total_s: float):
        self._name, self._total_s, self._due_s = name, total_s, 300.0

    def __call__(self, progress: Progress) -> None:
        if progress.done_s >= self._due_s:
            print(f"{self._name}: {progress.done_s:.0f} of {self._total_s:.0f} s", file=sys.stderr, flush=True)
            self._due_s += 300.0


def since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"


def time_errors(reference: Talk, result: Transcription, alignment: Pairs) -> str:
    words = [word for segment in result.segments for word in segment.words]
    if not words:
        return "no times"
    errors_s = []
    for i, j in alignment:
        if i is not None and j is not None and normalized([reference.words[i]]) == normalized([words[j].word]):
            _, start, end = reference.spoken[i]
            errors_s += [abs(start - words[j].start), abs(end - words[j].end)]
    e = 1000 * np.array(errors_s)
    return f"{result.timestamps_source}: median {np.median(e):.0f} ms, within 200 ms {np.mean(e <= 200):.1%}"


def wrong_words(reference: Talk, text: list[str], alignment: Pairs, ends_s: list[float]) -> list[str]:
    """A line for each wrong word: when it was spoken, how far away the nearest piece's end is, and the change."""
    lines = []
    words, at = normalized(reference.words), 0.0
    for n, (i, j) in enumerate(alignment):
        at = reference.spoken[i][1] if i is not None else at
        if i is not None and j is not None and words[i] == text[j]:
            continue
        context = [text[k] for _, k in alignment[max(0, n - 3) : n + 4] if k is not None]
        end = min((end - at for end in ends_s), key=abs, default=0.0)
        change = f"{words[i] if i is not None else '+'} → {text[j] if j is not None else '-'}"
        lines.append(f"    {at:8.1f} s, piece ends {end:+5.1f} s: {change:24} … {' '.join(context)} …")
    return lines


async def languages(engine: Engine, options: argparse.Namespace) -> None:
    """The share of held-out sentences whose language is detected, and a recording that changes its language."""
    for language in options.languages:
        rng = random.Random(5)
        correct = 0
        for _ in range(options.count):
            waveform, _ = speak(sentence(rng, "test").words(language), language, rng=rng)
            result = await transcribe_audio(engine, waveform, Task("auto"))
            correct += result.detection is not None and result.detection.language == language
        print(f"{language}: {correct} of {options.count}", flush=True)
    talks = [talk(language, 12, pauses_s=(0.6,)) for language in ("en", "fr", "de", "es", "en")]
    waveform = np.concatenate([t.waveform for t in talks])
    result = await transcribe_audio(engine, waveform, Task("auto"), detect_each=True)
    words = normalized([word for t in talks for word in t.words])
    print(f"changing: {word_error_rate(words, normalized(result.text.split())):.1%} wrong")
    for segment in result.segments:
        print(f"  {segment.start:6.1f} {segment.end:6.1f} {segment.language} {segment.text}")


async def size(engine: Engine, options: argparse.Namespace) -> None:
    """Elapsed time, CPU time and peak memory for audio of several lengths, decoded as it is needed."""
    waveform = talk(options.languages[0], 300).waveform
    await transcribe_audio(engine, waveform, Task(options.languages[0]))

    def blocks(minutes: float):
        for _ in range(round(minutes / 5)):
            for first in range(0, len(waveform), 1 << 16):
                yield waveform[first : first + (1 << 16)].copy()

    for minutes in options.minutes:
        before, began, cpu_s = peak_mb(), time.monotonic(), time.process_time()
        result = await transcribe_audio(engine, blocks(minutes), Task(options.languages[0], timestamps="word"))
        print(
            f"{result.duration / 60:.0f} min: {since(began)}, {time.process_time() - cpu_s:.0f} s of CPU, "
            f"at most {peak_mb() - before:.0f} MB more than before, {peak_mb():.0f} MB in all",
            flush=True,
        )


def peak_mb() -> float:
    """The peak memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("errors", "languages", "size"))
    parser.add_argument("--model", default="toy")
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES))
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=7, help="Seed of the sentences, voices and pauses.")
    parser.add_argument("--ways", nargs="+", choices=("silences", "overlaps"), default=["silences", "overlaps"])
    parser.add_argument("--times", nargs="+", choices=("word", "none"), default=["word", "none"])
    parser.add_argument("--show", action="store_true", help="Print every wrong word.")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60, 240])
    options = parser.parse_args()
    engine = Engine(lambda: load(resolve(options.model, dtype="float32"), "float32"))
    await engine.start()
    await {"errors": errors, "languages": languages, "size": size}[options.what](engine, options)
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main())
