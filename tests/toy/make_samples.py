"""Writes convert/toy/samples: a short recording for each language, of held-out sentences, and what is said in them.

    python -m tests.toy.make_samples convert/toy/toy.nemo convert/toy/samples

Recordings are drawn until the model gets one right in every task: both styles of text, times, translations, language.
They are the model at its best, then, and no measure of it.
"""

import argparse
import json
from pathlib import Path

import soundfile

from .grammar import LANGUAGES
from .score import BACKENDS, Backend, Item, recordings, time_errors_s
from .speech import SAMPLE_RATE

TRIES = 40
SENTENCES = 2
WORST_TIME_S = 0.16


def all_right(items: list[Item], backend: Backend) -> Item:
    """The first recording that the model gets right in every task. Raises SystemExit if there is none."""
    source = items[0].language
    sounds = [item.waveform for item in items]
    good = [found == source for found in backend.languages(sounds)]
    for target in targets(source):
        for pnc in (True, False):
            answers = backend.transcribe(sounds, source, target, pnc, False)
            texts = [item.text(target, pnc) for item in items]
            good = [g and a.text == text for g, a, text in zip(good, answers, texts, strict=True)]
    timed = backend.transcribe(sounds, source, source, True, True)
    for item, answer, right in zip(items, timed, good, strict=True):
        errors = time_errors_s([item], [answer])
        if right and errors and max(errors) <= WORST_TIME_S:
            return item
    raise SystemExit(f"{source}: none of {len(items)} recordings is right in every task")


def targets(source: str) -> tuple[str, ...]:
    """The languages a recording can be written in, its own first."""
    return LANGUAGES if source == "en" else (source, "en")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("model", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--backend", choices=list(BACKENDS), default="mlx")
    given = options.parse_args()
    backend = BACKENDS[given.backend](given.model)
    given.folder.mkdir(parents=True, exist_ok=True)
    described = {}
    for language in LANGUAGES:
        item = all_right(recordings(language, TRIES, SENTENCES, seed=4), backend)
        name = f"{language}.flac"
        soundfile.write(given.folder / name, item.waveform, SAMPLE_RATE, subtype="PCM_16")
        described[name] = {
            "language": language,
            "duration": round(len(item.waveform) / SAMPLE_RATE, 3),
            "text": item.text(language),
            "words": [{"word": w, "start": round(start, 3), "end": round(end, 3)} for w, start, end in item.spoken],
            "translations": {target: item.text(target) for target in targets(language)[1:]},
        }
    (given.folder / "samples.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
