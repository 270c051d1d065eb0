"""Trains convert/toy/toy.nemo: NeMo's model on synthetic speech, on one CPU core, in about an hour.

    pip install -r tests/toy/requirements.txt        # and the program espeak-ng
    python -m tests.toy.train --out convert/toy/toy.nemo

Every utterance is generated when needed and used only once. The encoder runs once per utterance, the decoder once for
each of its answers (transcript, transcript with times, translation). Two helper heads on the encoder, which predict the
word and the position of each frame, speed up the start. Their weight in the loss fades to zero; they are not saved.
"""

import argparse
import ctypes
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from nemo.utils import logging as nemo_logging

from .examples import FRAME_S, Answer, Utterance, utterance
from .grammar import LANGUAGES, vocabulary
from .network import new_model
from .speech import bare, load_spoken, save_spoken

POOL, BATCHES_PER_POOL = 384, 12  # utterances are sorted by length within a pool
PEAK_RATE, WARM_UP = 2e-3, 200
HELPERS_END = 0.7  # part of the training after which the helper heads no longer contribute to the loss
PERIODS = (4, 8, 16, 32, 64, 128, 256, 512)  # of the sine waves that encode a frame's position, in frames


class Tokens:
    """Converts answers to token ids, like NeMo's canary2 prompt formatter."""

    def __init__(self, tokenizer):
        self.tokenizer, self.special, self.known = tokenizer, tokenizer.special_tokens, {}

    def encode(self, answer: Answer) -> tuple[list[int], int, int]:
        """(ids of prompt, text and end; the index of <|startoftranscript|>; how many ids belong to the prompt)."""
        before = self._before(answer)
        prompt = [self.special[token] for token in self._prompt(answer)]
        ids = [*before, *prompt]
        for i, word in enumerate(answer.words):
            pieces = self._word(word, answer.target)
            if answer.times is None:
                ids += pieces
            else:
                start, end = (self.special[f"<|{round(second / FRAME_S)}|>"] for second in answer.times[i])
                ids += [start, *pieces, end]
        if not answer.words:
            ids.append(self.special["<|nospeech|>"])
        return [*ids, self.tokenizer.eos_id], len(before), len(before) + len(prompt)

    def _before(self, answer: Answer) -> list[int]:
        context = [i for word in answer.context for i in self._word(word, answer.target)]
        return [self.special["<|startofcontext|>"], *context]

    def _prompt(self, answer: Answer) -> list[str]:
        return [
            "<|startoftranscript|>",
            "<|emo:undefined|>",
            f"<|{answer.source}|>",
            f"<|{answer.target}|>",
            "<|pnc|>" if answer.pnc else "<|nopnc|>",
            "<|noitn|>",
            "<|notimestamp|>" if answer.times is None else "<|timestamp|>",
            "<|nodiarize|>",
        ]

    def _word(self, word: str, language: str) -> list[int]:
        if (word, language) not in self.known:
            self.known[word, language] = self.tokenizer.text_to_ids(word, language)
        return self.known[word, language]


class Helpers(torch.nn.Module):
    """Two linear heads on the encoder that predict a frame's word and its position."""

    def __init__(self, encoder_width: int):
        super().__init__()
        pairs = [(language, bare(word)) for language in LANGUAGES for word in vocabulary(language)]
        self.number = {pair: i + 1 for i, pair in enumerate(pairs)}  # 0: no word
        self.word = torch.nn.Linear(encoder_width, len(pairs) + 1)
        self.position = torch.nn.Linear(encoder_width, 2 * len(PERIODS))

    def loss(self, encoded: torch.Tensor, lengths: torch.Tensor, batch: list[Utterance]) -> torch.Tensor:
        """encoded: (B, T, D)."""
        frames = encoded.shape[1]
        labels = torch.zeros(len(batch), frames, dtype=torch.long)
        for row, item in enumerate(batch):
            for word, start, end in item.spoken:
                labels[row, round(start / FRAME_S) : round(end / FRAME_S) + 1] = self.number[item.language, bare(word)]
        valid = torch.arange(frames)[None] < lengths[:, None]
        waves = 2 * torch.pi * torch.arange(frames)[:, None] / torch.tensor(PERIODS)
        position = torch.cat([waves.sin(), waves.cos()], 1).expand(len(batch), -1, -1)
        word_loss = torch.nn.functional.cross_entropy(self.word(encoded[valid]), labels[valid])
        return word_loss + torch.nn.functional.mse_loss(self.position(encoded[valid]), position[valid])


def pool_of_batches(seed: int, pool: int, progress: float) -> list[list[Utterance]]:
    """Batches of utterances of similar length, with about the same total duration each, in random order."""
    rng = random.Random(f"{seed} {pool}")
    utterances = sorted((utterance(rng, progress) for _ in range(POOL)), key=lambda u: u.duration_s)
    end_s = np.cumsum([u.duration_s for u in utterances])
    number = np.minimum(end_s / end_s[-1] * BATCHES_PER_POOL, BATCHES_PER_POOL - 1e-6).astype(int)
    batches = [[u for u, n in zip(utterances, number, strict=True) if n == i] for i in range(BATCHES_PER_POOL)]
    rng.shuffle(batches)
    return batches


def sounds(batch: list[Utterance]) -> dict[str, torch.Tensor]:
    """The waveforms as input for NeMo's models, padded to the same length."""
    audio = torch.zeros(len(batch), max(len(u.waveform) for u in batch))
    for row, item in enumerate(batch):
        audio[row, : len(item.waveform)] = torch.from_numpy(item.waveform)
    return {"input_signal": audio, "input_signal_length": torch.tensor([len(u.waveform) for u in batch])}


def step_loss(model, helpers: Helpers, tokens: Tokens, batch: list[Utterance], helper_weight: float):
    """The decoder's mean loss per token, and its sum with the helpers' weighted loss."""
    loss, encoded_lengths = decoder_loss(model, tokens, batch)
    if helper_weight > 0:
        return loss, loss + helper_weight * helpers.loss(helpers.encoded, encoded_lengths, batch)
    return loss, loss


def decoder_loss(model, tokens: Tokens, batch: list[Utterance]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss over the tokens of all answers, and the number of encoder frames of each utterance."""
    _, encoded_lengths, states, mask = model.forward(**sounds(batch))
    owner = [row for row, item in enumerate(batch) for _ in item.answers]
    sequences = [tokens.encode(answer) for item in batch for answer in item.answers]
    # Answers with times are three times as long as those without, so two decoder runs waste less on padding.
    order = np.argsort([len(ids) for ids, _, _ in sequences])
    total, count = 0.0, 0
    for part in np.array_split(order, 2):
        longest = max(len(sequences[i][0]) for i in part)
        ids = torch.full((len(part), longest), model.tokenizer.pad_id)
        scored = torch.zeros(len(part), longest - 1, dtype=torch.bool)
        for row, i in enumerate(part):
            sequence, begin, prompt = sequences[i]
            ids[row, : len(sequence)] = torch.tensor(sequence)
            # The prompt after <|startoftranscript|> is learnt too, for language detection. Silence has no language.
            scored[row, (begin if batch[owner[i]].spoken else prompt - 1) : len(sequence) - 1] = True
        rows = torch.tensor([owner[i] for i in part])
        input_mask = ids[:, :-1] != model.tokenizer.pad_id
        decoded = model.transf_decoder(
            input_ids=ids[:, :-1],
            decoder_mask=input_mask.long(),
            encoder_embeddings=states[rows],
            encoder_mask=mask[rows],
        )
        log_probs = model.log_softmax(hidden_states=decoded[scored][None])[0]
        total = total + torch.nn.functional.nll_loss(log_probs, ids[:, 1:][scored], reduction="sum")
        count += int(scored.sum())
    return total / count, encoded_lengths


def keep_freed_memory() -> None:
    """Make glibc keep freed memory. Returning and reallocating large arrays took a third of each step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((-3, 2**25), (-1, 2**31 - 1), (-2, 2**28)):  # mmap, trim, top pad
            mallopt(parameter, value)


def rate_factor(step: int, steps: int, warm_up: int = WARM_UP) -> float:
    """The learning rate's factor: a linear warm-up, then a linear decay to nearly zero."""
    return min((step + 1) / warm_up, max(0.005, (steps - step) / (steps - warm_up)))


def train(out: Path, steps: int, seed: int, work: Path, save_every: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    load_spoken(work / "spoken.npz")
    torch.manual_seed(seed)
    model = new_model(work / "tokenizers")
    helpers = Helpers(model.cfg.encoder.d_model)
    # The helpers see the encoder's own output, before encoder_decoder_proj.
    model.encoder.register_forward_hook(lambda _m, _i, output: setattr(helpers, "encoded", output[0].transpose(1, 2)))
    tokens = Tokens(model.tokenizer)
    parameters = [*model.parameters(), *helpers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    first_pool, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(stored["model"])
        helpers.load_state_dict(stored["helpers"])
        optimizer.load_state_dict(stored["optimizer"])
        first_pool = stored["pools"]
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {first_pool * BATCHES_PER_POOL}",
        flush=True,
    )

    began, recent = time.time(), []
    background = ThreadPoolExecutor(1)  # makes the next pool in the meantime
    upcoming = background.submit(pool_of_batches, seed, first_pool, first_pool * BATCHES_PER_POOL / steps)
    for pool in range(first_pool, -(-steps // BATCHES_PER_POOL)):
        progress = pool * BATCHES_PER_POOL / steps
        batches = upcoming.result()
        upcoming = background.submit(pool_of_batches, seed, pool + 1, (pool + 1) * BATCHES_PER_POOL / steps)
        model.train()
        for i, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * rate_factor(pool * BATCHES_PER_POOL + i, steps)
            loss, whole = step_loss(model, helpers, tokens, batch, max(0.0, 1 - progress / HELPERS_END))
            optimizer.zero_grad()
            whole.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            recent.append((loss.item(), whole.item()))
        done = pool + 1
        if done % 5 == 0:
            mean, mean_whole = np.mean(recent[-60:], 0)
            step, passed_s = done * BATCHES_PER_POOL, time.time() - began
            print(f"step {step:6d}  loss {mean:.4f}, {mean_whole:.4f} with helpers  {passed_s:.0f} s", flush=True)
        if done == 20:
            save_spoken(work / "spoken.npz")
        if done % max(1, save_every // BATCHES_PER_POOL) == 0 or done * BATCHES_PER_POOL >= steps:
            stored = {
                "model": model.state_dict(),
                "helpers": helpers.state_dict(),
                "optimizer": optimizer.state_dict(),
                "pools": done,
            }
            torch.save(stored, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            model.eval()
            model.save_to(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("convert/toy/toy.nemo"))
    parser.add_argument("--steps", type=int, default=3780, help="batches of about 32 utterances (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, default=Path("toy-training"), help="for the checkpoint; a stopped training resumes from it"
    )
    parser.add_argument("--save-every", type=int, default=600, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    nemo_logging.setLevel(nemo_logging.ERROR)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    train(options.out, options.steps, options.seed, options.work, options.save_every)


if __name__ == "__main__":
    main()
