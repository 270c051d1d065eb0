"""What NeMo makes of small Parakeet archives, for the tests here to compare with.

    python -m tests.parity.make_parakeet_goldens                   # those in server/cli/doctor/goldens/parakeet
    python -m tests.parity.make_parakeet_goldens --out DIR --shape tdt --name odd --seed 7 --d-model 96 --features 80

Run from the repository's root, in an environment with requirements.txt. With --out, files are written to DIR/parakeet.
Each archive NAME.nemo gets NAME.json (tokens, frames, durations, texts, times, confidence) and NAME.npz (float32
arrays). Sounds are decoded one at a time: NeMo stores wrong durations for TDT in a batch.
"""

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nemo
import numpy as np
import soundfile
import torch
from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.parts.utils.timestamp_utils import process_timestamp_outputs
from nemo.utils import logging as nemo_logging
from omegaconf import OmegaConf, open_dict

from server.cli.doctor.compared import DRAWN, GOLDENS, drawn_features, kept_frames
from server.cli.doctor.sounds import LENGTHS, SAMPLE_RATE, checksum, sound
from tests.parity.build_parakeet import SHAPES, ParakeetShape, build, encode, heads, set_blank
from tests.parity.building import add_overrides, chosen_overrides, replace_weights, write_goldens

# The sounds whose joint network is stored on the whole lattice of frames and tokens, and whose CTC head is.
WHOLE = ("0.35s", "1s")
LATTICE_TOKENS = 6
BEAM_SIZES = (2, 4)
TRANSCRIBED = ("2.37s", "5.5s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=GOLDENS)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="default: all")
    parser.add_argument("--name", help="of the files; default: the shape's, with the seed if one is given")
    add_overrides(parser, ParakeetShape)
    arguments = parser.parse_args()
    chosen = chosen_overrides(arguments, ParakeetShape)

    nemo_logging.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder = arguments.out / "parakeet"
    folder.mkdir(parents=True, exist_ok=True)
    for shape in arguments.shape or list(SHAPES):
        name = arguments.name or (shape if arguments.seed is None else f"{shape}-{arguments.seed}")
        make(replace(SHAPES[shape], **chosen), folder / f"{name}.nemo")


def make(shape: ParakeetShape, path: Path) -> None:
    with tempfile.TemporaryDirectory() as workdir:
        model = build(shape, path, Path(workdir))
        for head in heads(model):
            set_blank(model, head, shape, count, [sound(name) for name in LENGTHS])
        replace_weights(path, model, shape.gzipped)
    goldens, arrays = measured(ASRModel.restore_from(str(path), map_location="cpu").eval())
    write_goldens(path, {"nemo": nemo.__version__, "shape": vars(shape)} | goldens, arrays)
    print(path.name, liveliness(goldens))


def measured(model: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every stage's values: what goes into the json and what into the npz."""
    goldens: dict[str, Any] = {"sounds": [], "lattices": [], "greedy": [], "beam": []}
    arrays: dict[str, np.ndarray] = {}
    encoded = {name: encode(model, [torch.from_numpy(sound(name))]) for name in LENGTHS}
    for name, stages in encoded.items():
        frames, length = stages["mel"].shape[1], int(stages["lengths"])
        goldens["sounds"].append(
            {
                "sound": name,
                "samples": LENGTHS[name],
                "checksum": checksum(sound(name)),
                "mel_frames": frames,
                "mel_length": int(stages["mel_lengths"]),
                "encoder_length": length,
            }
        )
        arrays[f"mel/{name}"] = stages["mel"][0, kept_frames(frames)].numpy()
        arrays[f"encoded/{name}"] = stages["states"][0, :, :length].T.numpy()
    for frames in DRAWN:
        arrays[f"encoder/{frames}"] = encoder_alone(model, frames)
    for head in heads(model):
        use_greedy(model, head)
        for name, stages in encoded.items():
            goldens["greedy"].append({"head": head, "sound": name, **written(model, head, stages)})
    for name in WHOLE:
        if "ctc" in heads(model):
            arrays[f"ctc/{name}"] = ctc_log_probs(model, encoded[name])[0].numpy()
        if "transducer" in heads(model):
            [run] = [r for r in goldens["greedy"] if r["head"] == "transducer" and r["sound"] == name]
            tokens = run["tokens"][:LATTICE_TOKENS]
            goldens["lattices"].append({"sound": name, "tokens": tokens})
            arrays[f"joint/{name}"] = lattice(model, encoded[name], tokens)
    goldens["transcribed"] = transcribed(model)
    if "transducer" in heads(model):
        for beam_size in BEAM_SIZES:
            use_beam(model, beam_size)
            for name, stages in encoded.items():
                goldens["beam"].append({"beam_size": beam_size, "sound": name, **best_of_beam(model, stages)})
    return goldens, arrays


@torch.inference_mode()
def encoder_alone(model: Any, frames: int) -> np.ndarray:
    """(T', D) of drawn features."""
    mel = torch.from_numpy(drawn_features(frames, model.cfg.encoder.feat_in))
    encoded, lengths = model.encoder(audio_signal=mel.T[None], length=torch.tensor([frames]))
    return encoded[0, :, : int(lengths[0])].T.numpy()


@torch.inference_mode()
def lattice(model: Any, stages: dict[str, Any], tokens: list[int]) -> np.ndarray:
    """(T, U + 1, outputs): the joint network's values, before any softmax, after each of the tokens and before them."""
    joint = model.joint
    predicted, _ = model.decoder.predict(torch.tensor([tokens], dtype=torch.long), add_sos=True)
    heard = joint.enc(stages["states"][:, :, : int(stages["lengths"])].transpose(1, 2))
    return joint.joint_net(heard[:, :, None] + joint.pred(predicted)[:, None])[0].numpy()


@torch.inference_mode()
def ctc_log_probs(model: Any, stages: dict[str, Any]) -> torch.Tensor:
    """(1, T', V + 1)"""
    head = model.ctc_decoder if hasattr(model, "ctc_decoder") else model.decoder
    return head(encoder_output=stages["states"][:, :, : int(stages["lengths"])])


def count(model: Any, head: str, stages: dict[str, Any]) -> int:
    """How many tokens a head writes."""
    if head == "ctc":
        best = ctc_log_probs(model, stages)[0].argmax(1)
        blank = model.tokenizer.vocab_size
        return int(((best != blank) & (best != torch.nn.functional.pad(best, (1, 0), value=-1)[:-1])).sum())
    [hypothesis] = model.decoding.rnnt_decoder_predictions_tensor(
        stages["states"], stages["lengths"], return_hypotheses=True
    )
    return len(hypothesis.y_sequence)


def use_greedy(model: Any, head: str) -> None:
    """Greedy search, with times and confidence."""
    hybrid = hasattr(model, "ctc_decoder")
    decoding = model.cfg.aux_ctc.decoding if hybrid and head == "ctc" else model.cfg.decoding
    decoding = OmegaConf.create(OmegaConf.to_container(decoding))
    with open_dict(decoding):
        decoding.compute_timestamps = True
        decoding.preserve_alignments = head == "ctc"
        decoding.confidence_cfg = {
            "preserve_frame_confidence": True,
            "preserve_token_confidence": True,
        }
    if hybrid:
        model.change_decoding_strategy(decoding, decoder_type="ctc" if head == "ctc" else "rnnt", verbose=False)
    else:
        model.change_decoding_strategy(decoding, verbose=False)


def written(model: Any, head: str, stages: dict[str, Any]) -> dict[str, Any]:
    """What one head writes: tokens with their frames and spans, text, words and segments with their times."""
    if head == "ctc":
        decoding = model.ctc_decoding if hasattr(model, "ctc_decoding") else model.decoding
        [best] = decoding.ctc_decoder_predictions_tensor(
            ctc_log_probs(model, stages), stages["lengths"], return_hypotheses=True
        )
    else:
        [best] = model.decoding.rnnt_decoder_predictions_tensor(
            stages["states"], stages["lengths"], return_hypotheses=True
        )
    [best] = process_timestamp_outputs([best], 8, 0.01)
    # Only a transducer's hypothesis has its tokens as they are; CTC's has the label of each frame.
    tokens = collapsed(model, best) if head == "ctc" else best.y_sequence
    values = {
        "tokens": [int(token) for token in tokens],
        "text": best.text,
        "score": float(best.score),
        "spans": [[start, end] for _, start, end, *_ in timed(best, "char")],
        "words": timed(best, "word"),
        "segments": timed(best, "segment"),
        "token_confidence": [float(c) for c in best.token_confidence],
    }
    if head == "transducer":
        values["frames"] = [int(frame) for frame in best.timestamp["timestep"]]
    if head == "transducer" and model.cfg.decoding.get("durations"):
        values["durations"] = [int(duration) for duration in best.token_duration]
    assert len(values["tokens"]) == len(values["spans"])
    return values


def timed(best: Any, kind: str) -> list[list[Any]]:
    """[text, first frame, frame after the last, start in seconds, end in seconds] of each `kind`."""
    return [
        [one[kind], int(one["start_offset"]), int(one["end_offset"]), float(one["start"]), float(one["end"])]
        for one in best.timestamp[kind]
    ]


def collapsed(model: Any, best: Any) -> list[int]:
    """The tokens of a CTC hypothesis, from the likeliest label of each frame."""
    labels = [int(label) for label in best.alignments[1]]
    blank = model.tokenizer.vocab_size
    return [now for before, now in zip([-1, *labels], labels, strict=False) if now not in (before, blank)]


def use_beam(model: Any, beam_size: int) -> None:
    decoding = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding))
    with open_dict(decoding):
        decoding.strategy = "malsd_batch"
        decoding.compute_timestamps = False
        decoding.preserve_alignments = False
        decoding.pop("confidence_cfg", None)
        decoding.beam = {
            "beam_size": beam_size,
            "max_symbols": decoding.greedy.max_symbols,
            "score_norm": True,
            "return_best_hypothesis": True,
            "allow_cuda_graphs": False,
        }
    if hasattr(model, "ctc_decoder"):
        model.change_decoding_strategy(decoding, decoder_type="rnnt", verbose=False)
    else:
        model.change_decoding_strategy(decoding, verbose=False)


def best_of_beam(model: Any, stages: dict[str, Any]) -> dict[str, Any]:
    best = model.decoding.rnnt_decoder_predictions_tensor(stages["states"], stages["lengths"], return_hypotheses=True)
    [best] = best[0] if isinstance(best[0], list) else best
    return {
        "tokens": [int(token) for token in best.y_sequence],
        "frames": [int(frame) for frame in best.timestamp],
        "score": float(best.score),
        "text": best.text,
    }


def transcribed(model: Any) -> list[dict[str, Any]]:
    """transcribe()'s own texts and words, from files, by the model's own head."""
    head = heads(model)[0]
    use_greedy(model, head)
    with open_dict(model.cfg):
        # A CTC model's transcribe() looks here, and a model that was never trained has no such section.
        model.cfg.validation_ds = {"use_start_end_token": False}
    told = []
    with tempfile.TemporaryDirectory() as folder:
        for name in TRANSCRIBED:
            path = Path(folder) / f"{name}.wav"
            soundfile.write(path, sound(name), SAMPLE_RATE, subtype="PCM_16")
            [best] = model.transcribe([str(path)], batch_size=1, timestamps=True, verbose=False)
            words = [[word, start, end] for word, _, _, start, end in timed(best, "word")]
            told.append({"sound": name, "head": head, "text": best.text, "words": words})
    return told


def liveliness(goldens: dict[str, Any]) -> str:
    """Says how varied the tokens are. Raises SystemExit if they hardly depend on the sound."""
    reports = []
    for head in dict.fromkeys(run["head"] for run in goldens["greedy"]):
        runs = [run["tokens"] for run in goldens["greedy"] if run["head"] == head]
        longest = max(runs, key=len)
        report = f"{head}: {[len(run) for run in runs]} tokens, {len(set(longest))} of the longest distinct"
        if not all(runs[1:]) or len(set(longest)) < 0.25 * len(longest):
            raise SystemExit(f"not lively enough: {report}; try another --seed")
        reports.append(report)
    return "; ".join(reports)


if __name__ == "__main__":
    main()
