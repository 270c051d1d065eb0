"""Scores a toy model on held-out sentences: exact sentences, word error rate, detected languages, word times.

    python -m tests.toy.score convert/toy/toy.nemo                    # with this project's model
    python -m tests.toy.score convert/toy/toy.nemo --dtype bfloat16   # as a GPU computes
    python -m tests.toy.score convert/toy/toy.nemo --backend nemo     # with NeMo, if it is installed
    python -m tests.toy.score tests/toy/models/v1.nemo                # word times from cross-attention
    python -m tests.toy.score tests/toy/models/v1.nemo --aligner tests/toy/models/aligner.nemo

Prints a Markdown table. `--json FILE` also writes the figures to a file.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convert.convert import ConversionConfig, convert

from .combined import with_aligner
from .grammar import LANGUAGES, Sentence, sentence
from .speech import SAMPLE_RATE, UNSEEN_VOICES, VOICES, WordTime, hiss, speak

PAIRS = [("en", other) for other in LANGUAGES[1:]] + [(other, "en") for other in LANGUAGES[1:]]
FRAME_S = 0.08


@dataclass
class Item:
    """One recording with its language, its sentences and its words with times."""

    sentences: list[Sentence]
    language: str
    waveform: np.ndarray
    spoken: list[WordTime]

    def text(self, language: str, pnc: bool = True) -> str:
        return " ".join(s.text(language, pnc) for s in self.sentences)


@dataclass
class Heard:
    """A backend's answer, with words and their times in seconds if they were requested."""

    text: str
    words: list[WordTime]


@dataclass
class Backend:
    """transcribe(waveforms, language, target, pnc, timestamps) → a Heard each; languages(waveforms) → a code each."""

    transcribe: Callable[[list[np.ndarray], str, str, bool, bool], list[Heard]]
    languages: Callable[[list[np.ndarray]], list[str]]


def recordings(
    language: str, count: int, sentences: int = 1, voices: tuple[str, ...] | None = None, seed: int = 1
) -> list[Item]:
    """Recordings of held-out sentences, `sentences` in each, spoken by `voices` (default: those of the training)."""
    rng = random.Random(f"{seed} {language} {sentences} {voices}")
    items = []
    for _ in range(count):
        drawn = [sentence(rng, "test") for _ in range(sentences)]
        words = [word for s in drawn for word in s.words(language)]
        waveform, spoken = speak(words, language, rng.choice(voices or VOICES[language]), rng)
        items.append(Item(drawn, language, waveform, spoken))
    return items


def nemo_backend(path: Path, batch: int = 20) -> Backend:
    """NeMo's modules with its greedy decoding."""
    import torch
    from nemo.collections.asr.models import EncDecMultiTaskModel
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(nemo_logging.ERROR)
    model = EncDecMultiTaskModel.restore_from(str(path), map_location="cpu")
    model.eval()

    def decode(waveforms: list[np.ndarray], prompt: str) -> list[list[int]]:
        prompt_ids = model.tokenizer.text_to_ids(prompt, "spl_tokens")
        # NeMo's transcribe() pads audio shorter than a second on both sides.
        waveforms = [np.pad(w, -(-max(0, SAMPLE_RATE - len(w)) // 2)) for w in waveforms]
        sequences = []
        for at in range(0, len(waveforms), batch):
            part = waveforms[at : at + batch]
            audio = torch.zeros(len(part), max(map(len, part)))
            for row, waveform in enumerate(part):
                audio[row, : len(waveform)] = torch.from_numpy(waveform)
            with torch.inference_mode():
                _, _, states, mask = model.forward(
                    input_signal=audio, input_signal_length=torch.tensor([len(w) for w in part])
                )
                hypotheses = model.decoding.decode_predictions_tensor(
                    states, mask, torch.tensor([prompt_ids] * len(part)), return_hypotheses=True
                )
            sequences += [[int(i) for i in h.y_sequence] for h in hypotheses]
        return sequences

    def transcribe(waveforms, language, target, pnc, timestamps):
        slots = [
            language,
            target,
            "pnc" if pnc else "nopnc",
            "noitn",
            "timestamp" if timestamps else "notimestamp",
            "nodiarize",
        ]
        prompt = "<|startofcontext|><|startoftranscript|><|emo:undefined|>" + "".join(f"<|{slot}|>" for slot in slots)
        texts = [model.tokenizer.ids_to_text(ids) for ids in decode(waveforms, prompt)]
        return [heard(text) for text in texts]

    def languages(waveforms):
        token = {i: name for name, i in model.tokenizer.special_tokens.items()}
        sequences = decode(waveforms, "<|startofcontext|><|startoftranscript|>")
        return [token.get(ids[1], "").strip("<|>") if len(ids) > 1 else "" for ids in sequences]

    return Backend(transcribe, languages)


def mlx_backend(path: Path, dtype: str = "float32") -> Backend:
    """This project's model through its Python API, in float32 for comparison with NeMo's, or in another type."""
    from server import Canary

    canary = Canary.from_pretrained(path, dtype=dtype)

    def transcribe(waveforms, language, target, pnc, timestamps):
        transcripts = canary.transcribe(
            waveforms, language, target, pnc=pnc, timestamps="word" if timestamps else "none"
        )
        return [Heard(t.text, [(w.word, w.start, w.end) for s in t.segments for w in s.words]) for t in transcripts]

    def languages(waveforms):
        return [transcription.language for transcription in canary.transcribe(waveforms, "auto")]

    return Backend(transcribe, languages)


BACKENDS: dict[str, Callable[..., Backend]] = {"mlx": mlx_backend, "nemo": nemo_backend}


def heard(text: str) -> Heard:
    """Parse a token string of the flash models, `<|12|> word<|17|>` for each word, or one without times."""
    timed = re.findall(r"<\|(\d+)\|>(.*?)<\|(\d+)\|>", text)
    words = [(word.strip(), int(start) * FRAME_S, int(end) * FRAME_S) for start, word, end in timed]
    text = " ".join(word for word, _, _ in words) if words else re.sub(r"<\|.*?\|>", "", text)
    return Heard(" ".join(text.split()), words)


def exact(items: list[Item], answers: list[Heard], language: str, pnc: bool = True) -> float:
    """The share of recordings without a single wrong letter."""
    return float(np.mean([a.text == i.text(language, pnc) for i, a in zip(items, answers, strict=True)]))


def word_error_rate(items: list[Item], answers: list[Heard], language: str, pnc: bool = True) -> float:
    """Substituted, missing and added words per word of the reference."""
    pairs = [(i.text(language, pnc).split(), a.text.split()) for i, a in zip(items, answers, strict=True)]
    return sum(edit_distance(r, h) for r, h in pairs) / sum(len(r) for r, _ in pairs)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """The Levenshtein distance in words."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, actual in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != actual))
    return row[-1]


def time_errors_s(items: list[Item], answers: list[Heard]) -> list[float]:
    """The absolute error of each start and end, in recordings whose words are all correct."""
    errors = []
    for item, answer in zip(items, answers, strict=True):
        if [w for w, _, _ in item.spoken] == [w for w, _, _ in answer.words]:
            for (_, *expected), (_, *actual) in zip(item.spoken, answer.words, strict=True):
                errors += [abs(a - e) for a, e in zip(actual, expected, strict=True)]
    return errors


def scores(backend: Backend, count: int) -> dict[str, dict[str, float]]:
    """All figures: one row per language, language pair and condition."""
    rows: dict[str, dict[str, float]] = {}
    singles = {language: recordings(language, count) for language in LANGUAGES}
    for language, items in singles.items():
        sounds = [item.waveform for item in items]
        plain, bare, timed = (
            backend.transcribe(sounds, language, language, pnc, times)
            for pnc, times in ((True, False), (False, False), (True, True))
        )
        detected = backend.languages(sounds)
        rows[language] = {
            "exact": exact(items, plain, language),
            "WER": word_error_rate(items, plain, language),
            "exact, nopnc": exact(items, bare, language, False),
            "exact, with times": exact(items, timed, language),
            **time_scores(items, timed),
            "language found": float(np.mean([d == language for d in detected])),
        }
    for source, target in PAIRS:
        sounds = [item.waveform for item in singles[source]]
        plain, timed = (backend.transcribe(sounds, source, target, True, times) for times in (False, True))
        rows[f"{source} → {target}"] = {
            "exact": exact(singles[source], plain, target),
            "WER": word_error_rate(singles[source], plain, target),
            "exact, with times": exact(singles[source], timed, target),
        }
    for name, sentences, voices in (("three sentences", 3, VOICES), ("unseen voices", 1, UNSEEN_VOICES)):
        for language in LANGUAGES:
            items = recordings(language, count // 2, sentences, voices[language], seed=2)
            sounds = [item.waveform for item in items]
            plain, timed = (backend.transcribe(sounds, language, language, True, times) for times in (False, True))
            rows[f"{language}, {name}"] = {
                "exact": exact(items, plain, language),
                "WER": word_error_rate(items, plain, language),
                "exact, with times": exact(items, timed, language),
                **time_scores(items, timed),
            }
    rng = random.Random(3)
    empty = [
        hiss(round(rng.uniform(0.5, 8) * SAMPLE_RATE), level, rng)
        for level in (0.0, 0.001, 0.01, 0.05)
        for _ in range(8)
    ]
    rows["no speech"] = {
        "exact": float(np.mean([not h.text for h in backend.transcribe(empty, "en", "en", True, False)]))
    }
    return rows


def time_scores(items: list[Item], answers: list[Heard]) -> dict[str, float]:
    errors = time_errors_s(items, answers)
    if not errors:
        return {}
    return {
        "time error, median ms": 1000 * float(np.median(errors)),
        "p95 ms": 1000 * float(np.percentile(errors, 95)),
        "within 200 ms": float(np.mean(np.array(errors) <= 0.2)),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as a Markdown table, with shares in per cent."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, row in rows.items():
        cells = [
            ("" if c not in row else f"{row[c]:.0f}" if "ms" in c and "within" not in c else f"{100 * row[c]:.1f}")
            for c in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", choices=list(BACKENDS), default="mlx")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="with mlx only")
    parser.add_argument("--count", type=int, default=100, help="recordings for each language (default %(default)s)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--aligner", type=Path, help="an archive to take word times from; with mlx only")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = options.model
        if options.aligner:
            combined = with_aligner(options.model, options.aligner, Path(folder) / "combined.nemo")
            path = convert(ConversionConfig(source=combined, output=Path(folder) / "combined"))
        chosen = {"dtype": options.dtype} if options.backend == "mlx" else {}
        rows = scores(BACKENDS[options.backend](path, **chosen), options.count)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
