"""Scores both heads of the toy Parakeet on held-out sentences: exact sentences, word error rate, word times.

    python -m tests.toy.score_parakeet convert/toy/toy-parakeet.nemo                    # with this project's model
    python -m tests.toy.score_parakeet convert/toy/toy-parakeet.nemo --dtype bfloat16   # as a GPU computes
    python -m tests.toy.score_parakeet convert/toy/toy-parakeet.nemo --backend nemo     # with NeMo, if it is installed

Prints a Markdown table for each head.
"""

import argparse
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convert.convert import ConversionConfig, convert

from .alignment import CLOSING
from .examples import FRAME_S
from .grammar import LANGUAGES
from .score import Heard, exact, recordings, table, time_scores, word_error_rate
from .speech import SAMPLE_RATE, UNSEEN_VOICES, VOICES, hiss

HEADS = ("tdt", "ctc")
BATCH = 10

Answers = dict[str, list[Heard]]
Backend = Callable[[list[np.ndarray]], Answers]
"""What each head writes for some recordings, with the words' times."""


def mlx_backend(path: Path, dtype: str) -> Backend:
    """This project's model."""
    from model.decoding import DecodingOptions
    from model.parakeet.model import ParakeetModel
    from model.task import AUTO, Task

    with TemporaryDirectory() as folder:
        converted = convert(ConversionConfig(source=path, output=Path(folder) / "parakeet"))
        parakeet = ParakeetModel.load(converted, dtype)

    def answers(waveforms: list[np.ndarray]) -> Answers:
        said: Answers = {head: [] for head in HEADS}
        for head in HEADS:
            for at in range(0, len(waveforms), BATCH):
                for transcript in parakeet.transcribe(
                    waveforms[at : at + BATCH], Task(AUTO, timestamps="word"), DecodingOptions(head=head)
                ):
                    words = [(w.word, w.start, w.end) for s in transcript.segments for w in s.words]
                    said[head].append(Heard(transcript.text, words))
        return said

    return answers


def nemo_backend(path: Path) -> Backend:
    """NeMo's modules with its greedy decoding, one recording at a time: in a batch it loses some durations of TDT."""
    import torch
    from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel
    from nemo.utils import logging as nemo_logging
    from omegaconf import open_dict

    nemo_logging.setLevel(nemo_logging.ERROR)
    torch.set_num_threads(1)
    model = EncDecHybridRNNTCTCBPEModel.restore_from(str(path), map_location="cpu")
    model.eval()
    with open_dict(model.cfg.decoding) as decoding:
        decoding.tdt_include_token_duration = True
    model.change_decoding_strategy(decoding, verbose=False)
    blank = model.ctc_decoder.num_classes_with_blank - 1

    def answer(waveform: np.ndarray) -> dict[str, Heard]:
        with torch.inference_mode():
            encoded, lengths = model.forward(
                input_signal=torch.from_numpy(waveform)[None], input_signal_length=torch.tensor([len(waveform)])
            )
            hypothesis = model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths, return_hypotheses=True)[0]
            labels = model.ctc_decoder(encoder_output=encoded)[0, : lengths[0]].argmax(-1).numpy()
        columns = (hypothesis.y_sequence, hypothesis.timestamp, hypothesis.token_duration)
        emitted = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
        tdt = [(piece, start, start + duration) for piece, start, duration in emitted]
        edges = np.flatnonzero(np.diff(labels, prepend=-1, append=-1)).tolist()
        runs = [(int(labels[first]), first, stop) for first, stop in pairwise(edges)]
        ctc = [run for run in runs if run[0] != blank]
        return {"tdt": written(model.tokenizer, tdt), "ctc": written(model.tokenizer, ctc)}

    def answers(waveforms: list[np.ndarray]) -> Answers:
        said = [answer(waveform) for waveform in waveforms]
        return {head: [each[head] for each in said] for head in HEADS}

    return answers


def written(tokenizer, pieces: list[tuple[int, int, int]]) -> Heard:
    """(piece, first frame, one past the last) → the text and its words. A closing mark does not extend its word."""
    found: list[list] = []
    for piece, first, stop in pieces:
        text = tokenizer.ids_to_tokens([piece])[0]
        if text.startswith("▁") or not found:
            found.append([text.lstrip("▁"), first, stop])
        else:
            found[-1] = [found[-1][0] + text, found[-1][1], found[-1][2] if text in CLOSING else stop]
    timed = [(word, first * FRAME_S, stop * FRAME_S) for word, first, stop in found]
    return Heard(tokenizer.ids_to_text([piece for piece, _, _ in pieces]), timed)


def scores(backend: Backend, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each head, the figures of each language and condition."""
    rows: dict[str, dict[str, dict[str, float]]] = {head: {} for head in HEADS}
    conditions = (
        ("", count, 1, VOICES, 1),
        (", three sentences", count // 2, 3, VOICES, 2),
        (", unseen voices", count // 2, 1, UNSEEN_VOICES, 2),
    )
    for name, number, sentences, voices, seed in conditions:
        for language in LANGUAGES:
            items = recordings(language, number, sentences, voices[language] if name else None, seed)
            for head, said in backend([item.waveform for item in items]).items():
                rows[head][language + name] = {
                    "exact": exact(items, said, language),
                    "WER": word_error_rate(items, said, language),
                    **time_scores(items, said),
                }
    rng = random.Random(3)
    levels = [level for level in (0.0, 0.001, 0.01, 0.05) for _ in range(8)]
    empty = [hiss(round(rng.uniform(0.5, 8) * SAMPLE_RATE), level, rng) for level in levels]
    for head, said in backend(empty).items():
        rows[head]["no speech"] = {"exact": float(np.mean([not answer.text for answer in said]))}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", choices=["mlx", "nemo"], default="mlx")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="with mlx only")
    parser.add_argument("--count", type=int, default=100, help="recordings for each language (default %(default)s)")
    options = parser.parse_args()
    is_nemo = options.backend == "nemo"
    backend = nemo_backend(options.model) if is_nemo else mlx_backend(options.model, options.dtype)
    for head, rows in scores(backend, options.count).items():
        print(f"{head}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
