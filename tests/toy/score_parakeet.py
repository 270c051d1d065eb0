"""Scores both heads of the toy Parakeet on held-out sentences with NeMo: exact sentences, word error rate, word times.

    python -m tests.toy.score_parakeet convert/toy/parakeet.nemo

Prints a Markdown table for each head. The words' times are those of their pieces, in frames of 80 ms.
"""

import argparse
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel
from nemo.utils import logging as nemo_logging
from omegaconf import open_dict

from .alignment import CLOSING
from .examples import FRAME_S
from .grammar import LANGUAGES
from .score import Heard, exact, recordings, table, time_scores, word_error_rate
from .speech import SAMPLE_RATE, UNSEEN_VOICES, VOICES, hiss

HEADS = ("tdt", "ctc")


def heard(model: EncDecHybridRNNTCTCBPEModel, waveform: np.ndarray) -> dict[str, Heard]:
    """What each head writes. One recording at a time: in a batch NeMo loses some durations of TDT."""
    with torch.inference_mode():
        encoded, lengths = model.forward(
            input_signal=torch.from_numpy(waveform)[None], input_signal_length=torch.tensor([len(waveform)])
        )
        hypothesis = model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths, return_hypotheses=True)[0]
        labels = model.ctc_decoder(encoder_output=encoded)[0].argmax(-1).numpy()
    starts = np.asarray(hypothesis.timestamp).tolist()
    durations = np.asarray(hypothesis.token_duration).tolist()
    tdt = [
        (int(i), start, start + duration)
        for i, start, duration in zip(hypothesis.y_sequence, starts, durations, strict=True)
    ]
    edges = np.flatnonzero(np.diff(labels, prepend=-1, append=-1)).tolist()
    runs = [(int(labels[first]), first, stop) for first, stop in pairwise(edges)]
    ctc = [run for run in runs if run[0] != model.ctc_decoder.num_classes_with_blank - 1]
    return {"tdt": words(model.tokenizer, tdt), "ctc": words(model.tokenizer, ctc)}


def words(tokenizer, pieces: list[tuple[int, int, int]]) -> Heard:
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


def scores(model: EncDecHybridRNNTCTCBPEModel, count: int) -> dict[str, dict[str, dict[str, float]]]:
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
            answers = [heard(model, item.waveform) for item in items]
            for head in HEADS:
                said = [answer[head] for answer in answers]
                rows[head][language + name] = {
                    "exact": exact(items, said, language),
                    "WER": word_error_rate(items, said, language),
                    **time_scores(items, said),
                }
    rng = random.Random(3)
    levels = [level for level in (0.0, 0.001, 0.01, 0.05) for _ in range(8)]
    answers = [heard(model, hiss(round(rng.uniform(0.5, 8) * SAMPLE_RATE), level, rng)) for level in levels]
    for head in HEADS:
        rows[head]["no speech"] = {"exact": float(np.mean([not answer[head].text for answer in answers]))}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=100, help="recordings for each language (default %(default)s)")
    options = parser.parse_args()
    nemo_logging.setLevel(nemo_logging.ERROR)
    torch.set_num_threads(1)
    model = EncDecHybridRNNTCTCBPEModel.restore_from(str(options.model), map_location="cpu")
    model.eval()
    with open_dict(model.cfg.decoding) as decoding:
        decoding.tdt_include_token_duration = True
    model.change_decoding_strategy(decoding, verbose=False)
    for head, rows in scores(model, options.count).items():
        print(f"{head}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
