"""What NeMo makes of small archives, stage by stage, for the tests here to compare with.

    python -m tests.parity.make_goldens                         # those in server/cli/doctor/goldens
    python -m tests.parity.make_goldens --out DIR --shape 1b-flash --name odd --seed 7 --d-model 96 --features 80

Run from the repository's root, in an environment with requirements.txt. Each archive NAME.nemo gets NAME.json (tokens,
texts, times) and NAME.npz (float32 arrays).
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
from nemo.collections.asr.models import EncDecMultiTaskModel
from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis
from nemo.collections.asr.parts.utils.timestamp_utils import get_forced_aligned_timestamps_with_external_model
from nemo.utils import logging as nemo_logging
from omegaconf import OmegaConf

from server.cli.doctor.compared import DRAWN, GOLDENS, drawn_features, kept_frames
from server.cli.doctor.sounds import LENGTHS, SAMPLE_RATE, checksum, sound
from tests.parity.build_archives import SHAPES, Shape, build, set_end
from tests.parity.building import add_overrides, chosen_overrides, replace_weights, sentences, write_goldens

BATCHES = (["5.5s", "0.35s", "2.37s"], ["1s", "12s"])
TRANSCRIBED = ("0.35s", "2.37s", "5.5s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=GOLDENS)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="default: all")
    parser.add_argument("--name", help="of the files; default: the shape's, with the seed if one is given")
    add_overrides(parser, Shape)
    arguments = parser.parse_args()
    chosen = chosen_overrides(arguments, Shape)

    nemo_logging.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for shape in arguments.shape or list(SHAPES):
        name = arguments.name or (shape if arguments.seed is None else f"{shape}-{arguments.seed}")
        make(replace(SHAPES[shape], **chosen), arguments.out / f"{name}.nemo")


def make(shape: Shape, path: Path) -> None:
    with tempfile.TemporaryDirectory() as workdir:
        build(shape, path, Path(workdir))
    model = restored(path)
    set_end(model, *end_that_varies_the_lengths(model))
    replace_weights(path, model, shape.gzipped)
    goldens, arrays = measured(restored(path))
    write_goldens(path, {"nemo": nemo.__version__, "shape": vars(shape)} | goldens, arrays)
    print(path.name, liveliness(goldens))


def restored(path: Path) -> EncDecMultiTaskModel:
    return EncDecMultiTaskModel.restore_from(str(path), map_location="cpu").eval()


def measured(model: EncDecMultiTaskModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every stage's values: what goes into the json and what into the npz."""
    prompts = prompts_of(model)
    goldens: dict[str, Any] = {"prompts": prompts, "sounds": [], "forced": [], "greedy": [], "beam": [], "batches": []}
    arrays: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    encoded = {name: encode(model, [name]) for name in LENGTHS}
    for name in LENGTHS:
        stages = encoded[name]
        goldens["sounds"].append(
            {
                "sound": name,
                "samples": LENGTHS[name],
                "checksum": checksum(sound(name)),
                "mel_frames": stages["mel"].shape[1],
                "mel_length": stages["mel_length"],
                "encoder_frames": stages["states"].shape[1],
                "encoder_length": stages["length"],
            }
        )
        arrays[f"mel/{name}"] = stages["mel"][0, kept_frames(stages["mel"].shape[1])].numpy()
        arrays[f"encoded/{name}"] = stages["states"][0, : stages["length"]].numpy()
    for frames in DRAWN:
        before, after = encoder_alone(model, frames)
        arrays[f"encoder/{frames}"] = before
        if model.cfg.encoder.d_model != model.cfg.transf_decoder.config_dict.hidden_size:
            arrays[f"projected/{frames}"] = after

    for name, prompt in (("0.35s", 0), ("2.37s", 1), ("12s", len(prompts) - 1)):
        ids = prompts[prompt]["ids"] + rng.integers(4, model.tokenizer.vocab_size, 12).tolist()
        arrays[f"log_probs/{len(goldens['forced'])}"] = forced_log_probs(model, encoded[name], ids)
        goldens["forced"].append({"sound": name, "tokens": ids})

    use_beam(model, 1)
    for name in LENGTHS:
        for index, prompt in enumerate(prompts):
            best = decode(model, encoded[name], [prompt["ids"]])[0]
            goldens["greedy"].append({"sound": name, "prompt": index, **tokens_and_text(best)})
    for names in BATCHES:
        best = decode(model, encode(model, names), [prompts[0]["ids"]] * len(names))
        goldens["batches"].append({"sounds": names, "prompt": 0, "tokens": [b.y_sequence.tolist() for b in best]})

    for beam_size in (2, 3, 5):
        for length_penalty in (0.0, 1.0):
            use_beam(model, beam_size, length_penalty)
            for name, index in (("0.35s", 0), ("1s", 1), ("2.37s", 2), ("5.5s", 0), ("5.5s", 1), ("12s", 2)):
                ids = prompts[index]["ids"]
                best = decode(model, encoded[name], [ids])[0]
                case = {"sound": name, "prompt": index, "beam_size": beam_size, "length_penalty": length_penalty}
                goldens["beam"].append(case | tokens_and_text(best))

    use_beam(model, 1)
    goldens["transcribed"] = transcribed(model, prompts)
    if model.timestamps_asr_model is not None:
        goldens["alignments"], log_probs = aligned(model)
        arrays |= log_probs
    return goldens, arrays


def prompts_of(model: EncDecMultiTaskModel) -> list[dict[str, Any]]:
    """Tasks in the project's words, with the token ids NeMo's prompt formatter makes of them."""
    is_bpe = not hasattr(model.tokenizer, "tokenizers_dict")
    tasks: list[dict[str, Any]] = [
        {"language": "en"},
        {"language": "de", "target_language": "en", "pnc": is_bpe},
        {"language": "en", "target_language": "fr"},
        {"language": "fr"},
    ]
    if model.prompt_format == "canary2":
        tasks.append({"language": "de", "context": sentences("de", 1, seed=9)[0]})
        if not is_bpe:
            tasks.append({"language": "es", "target_language": "en", "timestamps": "word"})
    return [{"task": task, "ids": prompt_ids(model, task)} for task in tasks]


def prompt_ids(model: EncDecMultiTaskModel, task: dict[str, Any]) -> list[int]:
    slots = dict(model.prompt.get_default_dialog_slots()[0]["slots"])
    slots |= slots_of(task)
    if model.prompt_format == "canary":
        slots["task"] = "translate" if slots["target_lang"] != slots["source_lang"] else "transcribe"
    else:
        slots["timestamp"] = "yes" if task.get("timestamps") else "no"
        slots["decodercontext"] = task.get("context", "")
    return model.prompt.encode_dialog([{"role": "user", "slots": slots}])["context_ids"].tolist()


def slots_of(task: dict[str, Any]) -> dict[str, str]:
    return {
        "source_lang": task["language"],
        "target_lang": task.get("target_language", task["language"]),
        "pnc": "yes" if task.get("pnc", True) else "no",
    }


@torch.inference_mode()
def encode(model: EncDecMultiTaskModel, names: list[str]) -> dict[str, Any]:
    """The stages up to the decoder's door, of sounds padded to one batch."""
    model.eval()
    waveforms = [torch.from_numpy(sound(name)) for name in names]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    signal = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    mel, mel_lengths = model.preprocessor(input_signal=signal, length=lengths)
    _, encoded_lengths, states, mask = model(input_signal=signal, input_signal_length=lengths)
    return {
        "mel": mel.transpose(1, 2),
        "mel_length": int(mel_lengths[0]),
        "length": int(encoded_lengths[0]),
        "states": states,
        "mask": mask,
    }


@torch.inference_mode()
def encoder_alone(model: EncDecMultiTaskModel, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn features' encoding before and after encoder_decoder_proj."""
    model.eval()
    mel = torch.from_numpy(drawn_features(frames, model.cfg.encoder.feat_in))
    encoded, lengths = model.encoder(audio_signal=mel.T[None], length=torch.tensor([frames]))
    encoded = encoded.transpose(1, 2)[:, : int(lengths[0])]
    return encoded[0].numpy(), model.encoder_decoder_proj(encoded)[0].numpy()


@torch.inference_mode()
def hidden_states(model: EncDecMultiTaskModel, encoded: dict[str, Any], ids: list[int]) -> torch.Tensor:
    """The decoder's (S, M) for given tokens. Decoding leaves parts of the model in training mode: undone here."""
    model.eval()
    tokens = torch.tensor([ids])
    return model.transf_decoder(
        input_ids=tokens,
        decoder_mask=torch.ones_like(tokens),
        encoder_embeddings=encoded["states"],
        encoder_mask=encoded["mask"],
    )[0]


@torch.inference_mode()
def forced_log_probs(model: EncDecMultiTaskModel, encoded: dict[str, Any], ids: list[int]) -> np.ndarray:
    return model.log_softmax(hidden_states=hidden_states(model, encoded, ids)[None])[0].numpy()


def use_beam(model: EncDecMultiTaskModel, beam_size: int, length_penalty: float = 0.0) -> None:
    decoding = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding))
    decoding.strategy = "beam"
    decoding.beam = {"beam_size": beam_size, "length_penalty": length_penalty, "max_generation_delta": 50}
    OmegaConf.set_struct(decoding, False)
    model.change_decoding_strategy(decoding)


def decode(model: EncDecMultiTaskModel, encoded: dict[str, Any], prompts: list[list[int]]) -> list[Hypothesis]:
    return model.decoding.decode_predictions_tensor(
        encoder_hidden_states=encoded["states"],
        encoder_input_mask=encoded["mask"],
        decoder_input_ids=torch.tensor(prompts),
        return_hypotheses=True,
    )


def tokens_and_text(hypothesis: Hypothesis) -> dict[str, Any]:
    return {"tokens": hypothesis.y_sequence.tolist(), "text": hypothesis.text}


def transcribed(model: EncDecMultiTaskModel, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """transcribe()'s own texts, from files."""
    texts = []
    with tempfile.TemporaryDirectory() as folder:
        for name, task in zip(TRANSCRIBED, (prompts[0]["task"], prompts[1]["task"], prompts[3]["task"]), strict=True):
            path = Path(folder) / f"{name}.wav"
            soundfile.write(path, sound(name), SAMPLE_RATE, subtype="PCM_16")
            slots = slots_of(task)
            is_translation = slots["source_lang"] != slots["target_lang"]
            kind = {"taskname": "ast" if is_translation else "asr"} if model.prompt_format == "canary" else {}
            text = model.transcribe([str(path)], batch_size=1, verbose=False, **slots, **kind)[0].text
            texts.append({"sound": name, "task": task, "text": text})
    return texts


def aligned(model: EncDecMultiTaskModel) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The embedded CTC model's log-probabilities and the times it gives to the words of texts."""
    aligner = model.timestamps_asr_model.eval()
    arrays, alignments = {}, []
    for name in ("1s", "2.37s"):
        signal = torch.from_numpy(sound(name))[None]
        with torch.inference_mode():
            log_probs, lengths, _ = aligner(input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]]))
        arrays[f"aligner/{name}"] = log_probs[0][: int(lengths[0])].numpy()
    for seed, name in enumerate(("2.37s", "5.5s", "5.5s", "12s", "12s", "12s", "0.35s")):
        text = (
            " ".join(sentences("en", 2, seed=100 + seed)) if LENGTHS[name] > 80000 else sentences("fr", 1, seed=seed)[0]
        )
        hypothesis = Hypothesis(score=0.0, y_sequence=[], text=text)
        [timed] = get_forced_aligned_timestamps_with_external_model(
            audio=[torch.from_numpy(sound(name))],
            external_ctc_model=aligner,
            main_model_predictions=[hypothesis],
            batch_size=1,
            timestamp_type=["word", "segment"],
            viterbi_device=torch.device("cpu"),
            verbose=False,
        )
        times = {
            kind: [[item[kind], item["start"], item["end"]] for item in timed.timestamp[kind]]
            for kind in ("word", "segment")
        }
        alignments.append({"sound": name, "text": text, "words": times["word"], "segments": times["segment"]})
    return alignments, arrays


@torch.inference_mode()
def end_that_varies_the_lengths(model: EncDecMultiTaskModel) -> tuple[torch.Tensor, float]:
    """A vector and a bias of the end token with which greedy runs end at many different places, and none at once.

    The end's vector is never an input, so what it would do is seen from one run that never ends.
    """
    use_beam(model, 1)
    eos = model.tokenizer.eos
    set_end(model, torch.zeros(model.log_softmax.mlp.layer0.weight.shape[1]), -100.0)
    states, others = [], []
    for name in LENGTHS:
        encoded = encode(model, [name])
        for prompt in prompts_of(model):
            ids = prompt["ids"]
            hidden = hidden_states(model, encoded, ids + decode(model, encoded, [ids])[0].y_sequence.tolist()[:-1])
            states.append(hidden[len(ids) - 1 :])
            logits = model.log_softmax.mlp.layer0(states[-1])
            others.append(logits.index_fill(1, torch.tensor(eos), -torch.inf).amax(1))
    generator = torch.Generator().manual_seed(0)
    best: tuple[int, torch.Tensor, float] = (0, torch.zeros(0), 0.0)
    for _ in range(300):
        vector = (0.3 * torch.randn(states[0].shape[1], generator=generator)).bfloat16().float()
        lead = [h @ vector - other for h, other in zip(states, others, strict=True)]
        # As high as leaves the first token of every run well alone.
        bias = -2.0 - max(float(run[0]) for run in lead)
        ends = [int((run + bias > 0).int().argmax()) if (run + bias > 0).any() else len(run) for run in lead]
        unended = sum(end == len(run) for end, run in zip(ends, lead, strict=True))
        variety = len(set(ends)) if 2 <= unended <= len(ends) / 2 else 0
        best = max(best, (variety, vector, bias), key=lambda candidate: candidate[0])
    if best[0] < len(states) / 3:
        raise SystemExit("no end token varies the lengths of the runs: try another --seed")
    return best[1], best[2]


def liveliness(goldens: dict[str, Any]) -> str:
    """Says how varied the tokens are. Raises SystemExit if they do not depend on the sound or the prompt."""
    tokens = [tuple(run["tokens"]) for run in goldens["greedy"]]
    distinct = [len(set(run)) / len(run) for run in tokens]
    beam_lengths = [len(b["tokens"]) for b in goldens["beam"]]
    beams = {(b["sound"], b["prompt"], tuple(b["tokens"])) for b in goldens["beam"]}
    changed = sum(
        next(g["tokens"] for g in goldens["greedy"] if (g["sound"], g["prompt"]) == (b["sound"], b["prompt"]))
        != b["tokens"]
        for b in goldens["beam"]
    )
    lengths = [len(run) for run in tokens]
    report = (
        f"{len(tokens)} greedy runs, {len(set(tokens))} different, {len(set(lengths))} different lengths of "
        f"{min(lengths)} to {max(lengths)} tokens, {np.mean(distinct):.0%} of a run distinct; "
        f"{len(goldens['beam'])} beams, {len(beams)} different, {changed} unlike greedy, of "
        f"{min(beam_lengths)} to {max(beam_lengths)} tokens"
    )
    if len(set(tokens)) < 0.9 * len(tokens) or np.mean(distinct) < 0.12:
        raise SystemExit(f"not lively enough: {report}")
    return report


if __name__ == "__main__":
    main()
