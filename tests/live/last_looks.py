"""What the last look at a segment costs, which also times its words: with a draft of the timed text, and without one.

    OPENBLAS_NUM_THREADS=1 python -m tests.live.last_looks
    OPENBLAS_NUM_THREADS=1 python -m tests.live.last_looks --shape canary-180m-flash

Sessions without a server, on toy speech that the toy never met, or with random weights that write as `paced` says. A
segment is as long as the window. CPU seconds, the median of rounds that take turns in one process. Fails if a draft
changes a word or its times.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np

from model.canary.model import CanaryModel
from server.audio.vad import FRAME
from server.engine.batching import Batcher
from server.engine.passes import Pass, PassResult
from server.live.decoder import EngineDecoder
from server.live.endpointing import SAMPLE_RATE
from server.live.segment import LiveOptions
from server.live.session import LiveSession
from server.live.windows import WindowTranscriber
from tests.live.looks import sound
from tests.live.random_archive import FLASH

LANGUAGES = ("en", "de", "es", "fr")
SENTENCES = 3
"""Sounds of each language and length."""


@dataclass(frozen=True)
class LastLook:
    """One last look. words: those that were timed; tokens: of their text with its times and its end; passes: through
    the decoder."""

    words: int
    tokens: int
    passes: int
    cpu_s: float


def words_of(result: PassResult) -> list[tuple[str, float, float]]:
    """Of the last text: words, starts and ends."""
    return [(word.word, word.start, word.end) for part in result.transcripts[-1].segments for word in part.words]


@dataclass
class Engine:
    """Runs one pass after the other in this thread, and a segment's last one `rounds` times with and without drafts."""

    model: CanaryModel
    rounds: int
    stepped: list[LastLook] = field(default_factory=list)
    drafted: list[LastLook] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.info = SimpleNamespace(tokenizer=self.model.tokenizer, config=self.model.config)
        self._batcher = Batcher(self.model, 16)

    async def run(self, wanted: Pass, priority: int) -> PassResult:
        if not wanted.drafts:
            return self._timed(wanted)[0]
        for round_ in range(self.rounds):
            plain, without = self._timed(replace(wanted, drafts=()))
            result, with_draft = self._timed(wanted)
            assert words_of(result) == words_of(plain), "a draft changed the words or their times"
            # The first round is slower than those that follow it.
            if round_ or self.rounds == 1:
                self.stepped.append(without)
                self.drafted.append(with_draft)
        return result

    def _timed(self, wanted: Pass) -> tuple[PassResult, LastLook]:
        began, passes = time.process_time(), 1
        outcomes = self._batcher.join([(1, wanted)])
        while not outcomes:
            outcomes, passes = self._batcher.step(), passes + 1
        ((_, result),) = outcomes
        if isinstance(result, Exception):
            raise result
        cpu_s = time.process_time() - began
        return result, LastLook(len(words_of(result)), len(result.generated[-1].tokens) + 1, passes, cpu_s)


async def live(engine: Engine, waveform: np.ndarray, language: str) -> None:
    """A session over sound that has no pause."""
    options = LiveOptions(language)
    decoder = EngineDecoder(engine, word_times=True)  # type: ignore[arg-type]
    session = LiveSession(WindowTranscriber(decoder, options), options)
    for frame in waveform[: len(waveform) // FRAME * FRAME].reshape(-1, FRAME):
        session.hear(frame, [1.0])
        while session.due:
            await session.step()
    session.finalize()
    while session.due:
        await session.step()


def toy_sounds(seconds: float) -> Iterator[tuple[str, np.ndarray]]:
    """Whole sentences of about this length, with the silence that ends a turn."""
    from tests.live.speaking import speech

    for language in LANGUAGES:
        for seed in range(SENTENCES):
            said = speech(language, seconds, seed=100 + seed).until(seconds)
            end_s = said.words[-1][2] if said.words else seconds
            yield language, said.waveform[: round(min(end_s + 0.6, seconds) * SAMPLE_RATE)]


@contextmanager
def shaped(shape: str) -> Iterator[CanaryModel]:
    """A model of this shape with random weights, which writes at the pace of speech."""
    from convert.convert import ConversionConfig, convert
    from tests.live.paced import PacedCanary
    from tests.live.random_archive import random_archive

    with random_archive(shape) as archive, TemporaryDirectory() as folder:
        yield PacedCanary.load(convert(ConversionConfig(source=archive, output=Path(folder, shape))), "float32")


def toy() -> CanaryModel:
    from convert.hub import resolve
    from model import loading

    model = loading.load(resolve("toy", dtype="float32"), "float32")
    assert isinstance(model, CanaryModel)
    return model


def show(model: CanaryModel, windows: Sequence[float], rounds: int, paced: bool) -> None:
    """A table with a row for each length."""
    print("| window | words timed | tokens | passes | CPU s without a draft | with one | share |")
    print("|---|---|---|---|---|---|---|")
    for seconds in windows:
        engine = Engine(model, rounds)
        for language, waveform in [("en", sound(seconds))] if paced else toy_sounds(seconds):
            asyncio.run(live(engine, waveform, language))
        words, tokens, passes = (
            statistics.mean(getattr(look, name) for look in engine.drafted) for name in ("words", "tokens", "passes")
        )
        without, with_draft = (
            statistics.median(look.cpu_s for look in looks) for looks in (engine.stepped, engine.drafted)
        )
        print(
            f"| {seconds:g} s | {words:.0f} | {tokens:.0f} | {passes:.1f} | {without:.3f} | {with_draft:.3f} | "
            f"{with_draft / without:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=FLASH, help="instead of the toy: random weights in this shape")
    parser.add_argument("--windows", type=float, nargs="*", default=[5, 10, 20], help="in seconds")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.shape:
        with shaped(options.shape) as model:
            show(model, options.windows, options.rounds, paced=True)
    else:
        show(toy(), options.windows, options.rounds, paced=False)


if __name__ == "__main__":
    main()
