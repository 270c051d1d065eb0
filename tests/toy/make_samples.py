"""Writes convert/toy/samples: a short recording of held-out sentences for each language, and its text.

    python -m tests.toy.make_samples convert/toy/toy.nemo convert/toy/samples

Tries recordings until the model gets one right in every task: both styles of text, times, translations, language.
They show the model at its best and do not measure its accuracy.
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
MAX_TIME_ERROR_S = 0.16


def first_correct(items: list[Item], backend: Backend) -> Item:
    """The first recording that the model gets right in every task. Raises SystemExit if there is none."""
    source = items[0].language
    sounds = [item.waveform for item in items]
    correct = [language == source for language in backend.languages(sounds)]
    for target in targets(source):
        for pnc in (True, False):
            answers = backend.transcribe(sounds, source, target, pnc, False)
            texts = [item.text(target, pnc) for item in items]
            correct = [c and a.text == text for c, a, text in zip(correct, answers, texts, strict=True)]
    timed = backend.transcribe(sounds, source, source, True, True)
    for item, answer, is_correct in zip(items, timed, correct, strict=True):
        errors = time_errors_s([item], [answer])
        if is_correct and errors and max(errors) <= MAX_TIME_ERROR_S:
            return item
    raise SystemExit(f"{source}: none of {len(items)} recordings is right in every task")


def targets(source: str) -> tuple[str, ...]:
    """The languages a recording can be transcribed or translated to, its own first."""
    return LANGUAGES if source == "en" else (source, "en")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", choices=list(BACKENDS), default="mlx")
    options = parser.parse_args()
    backend = BACKENDS[options.backend](options.model)
    options.folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for language in LANGUAGES:
        item = first_correct(recordings(language, TRIES, SENTENCES, seed=4), backend)
        name = f"{language}.flac"
        soundfile.write(options.folder / name, item.waveform, SAMPLE_RATE, subtype="PCM_16")
        index[name] = {
            "language": language,
            "duration": round(len(item.waveform) / SAMPLE_RATE, 3),
            "text": item.text(language),
            "words": [{"word": w, "start": round(start, 3), "end": round(end, 3)} for w, start, end in item.spoken],
            "translations": {target: item.text(target) for target in targets(language)[1:]},
        }
    (options.folder / "samples.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
