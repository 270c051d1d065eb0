"""Shared by the toy's variants: load the toy, fine-tune it for something else, and save it in 16 bits."""

import argparse
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from nemo.collections.asr.models import ASRModel, EncDecMultiTaskModel
from nemo.utils import logging as nemo_logging
from omegaconf import DictConfig, OmegaConf

from .alignment import Placed
from .examples import Utterance
from .speech import load_spoken
from .train import BATCHES_PER_POOL, keep_freed_memory, pool_of_batches, rate_factor

WARM_UP = 30
REPORT_EVERY = 60
SAVE_EVERY = 10 * BATCHES_PER_POOL

Loss = Callable[[list[Utterance]], torch.Tensor]
NewModel = Callable[[Path, Path], tuple[ASRModel, Loss]]


def unpacked(archive: Path, folder: Path) -> DictConfig:
    """Extract the archive to `folder`, and return its configuration with the paths of the extracted files."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    config = (folder / "model_config.yaml").read_text()
    return OmegaConf.create(config.replace("nemo:", f"{folder.absolute()}/"))


def restored(archive: Path) -> EncDecMultiTaskModel:
    """The trained toy as a NeMo model."""
    return EncDecMultiTaskModel.restore_from(str(archive), map_location="cpu")


def train_variant(description: str | None, new_model: NewModel, steps: int, rate: float) -> None:
    """The command line of a training script. new_model: (the toy's archive, a scratch folder) → (model, loss)."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("toy", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=steps, help="of about 32 utterances (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spoken", type=Path, default=Path("toy-training/spoken.npz"), help="words saved by train.py")
    parser.add_argument("--checkpoint", type=Path, help="a file to resume a stopped training from")
    options = parser.parse_args()
    nemo_logging.setLevel(nemo_logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    keep_freed_memory()
    load_spoken(options.spoken)
    with TemporaryDirectory() as folder:
        model, loss_of = new_model(options.toy, Path(folder))
        fine_tune(model, loss_of, options.steps, rate, options.seed, options.checkpoint)
        save(model, options.out)


def fine_tune(
    model: ASRModel, loss_of: Loss, steps: int, rate: float, seed: int, checkpoint: Path | None = None
) -> None:
    """Train for `steps` batches of the toy's own training examples, printing the loss.

    checkpoint: a file that the state is saved to every SAVE_EVERY steps, and resumed from if it exists.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    first = 0
    if checkpoint and checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        first = stored["steps"]
    background = ThreadPoolExecutor(1)  # makes the next pool in the meantime
    upcoming = background.submit(pool_of_batches, seed, first // BATCHES_PER_POOL, 1.0)
    began, recent, batches = time.process_time(), [], []
    model.train()
    for step in range(first, steps):
        if not batches:
            batches = upcoming.result()
            upcoming = background.submit(pool_of_batches, seed, step // BATCHES_PER_POOL + 1, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(step, steps, WARM_UP)
        loss = loss_of(batches.pop())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0:
            mean = np.mean(recent[-REPORT_EVERY:])
            print(f"step {step + 1:5d}  loss {mean:.4f}  {time.process_time() - began:.0f} CPU s", flush=True)
        if checkpoint and (step + 1) % SAVE_EVERY == 0:
            stored = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": step + 1}
            torch.save(stored, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    upcoming.cancel()
    background.shutdown()


def ctc_loss(log_probs: torch.Tensor, lengths: torch.Tensor, placed: list[list[Placed]], blank: int) -> torch.Tensor:
    """The sum of the frame-wise loss and the CTC loss, per frame. log_probs: (B, T, V+1); lengths: (B,)."""
    labels = torch.full(log_probs.shape[:2], blank)
    for row, pieces in enumerate(placed):
        for piece in pieces:
            labels[row, piece.first : piece.stop] = piece.piece
    valid = torch.arange(log_probs.shape[1])[None] < lengths[:, None]
    by_frame = torch.nn.functional.nll_loss(log_probs[valid], labels[valid], reduction="sum")
    by_text = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([piece.piece for pieces in placed for piece in pieces], dtype=torch.long),
        lengths,
        torch.tensor([len(pieces) for pieces in placed]),
        blank,
        reduction="sum",
        zero_infinity=True,  # for texts with more pieces than frames
    )
    return (by_frame + by_text) / lengths.sum()


def save(model: ASRModel, out: Path) -> None:
    """Save with NeMo, weights in float16. The preprocessor stays in float32, which quiet sounds need."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in model.named_children():
        if name != "preprocessor":
            part.half()
    model.eval()
    model.save_to(str(out))
