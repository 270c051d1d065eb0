"""NeMo's side of the comparison: its own classes and its own greedy search."""

from pathlib import Path

import torch
from nemo.collections.asr.models import EncDecMultiTaskModel
from nemo.collections.asr.modules.transformer.transformer_generators import GreedySequenceGenerator
from nemo.utils import logging
from worker import NEVER, Job, Run, Stages, work


def load(archive: Path) -> Run:
    logging.setLevel(logging.ERROR)
    model = EncDecMultiTaskModel.restore_from(str(archive), map_location="cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    device = next(model.parameters()).device
    own_bias = model.log_softmax.mlp.layer0.bias.detach().clone()

    def run(job: Job, stages: Stages) -> list[list[int]]:
        bias = own_bias.clone()
        bias[job.banned] = NEVER
        model.log_softmax.mlp.layer0.bias.data = bias
        search = GreedySequenceGenerator(
            embedding=model.transf_decoder.embedding,
            decoder=model.transf_decoder.decoder,
            classifier=model.log_softmax,
            pad=model.tokenizer.pad_id,
            bos=model.tokenizer.bos_id,
            eos=model.tokenizer.eos_id,
            max_sequence_length=len(job.prompt) + max(job.tokens),
            max_delta_length=-1,
        )
        audio, lengths = (torch.from_numpy(each).to(device) for each in job.padded())
        prompts = torch.tensor([job.prompt] * len(audio), device=device)
        with torch.inference_mode():
            with stages("features"):
                mel, frames = model.preprocessor(input_signal=audio, length=lengths)
                _wait()
            with stages("encode"):
                states, steps = model.encoder(audio_signal=mel, length=frames)
                states = model.encoder_decoder_proj(states.transpose(1, 2))
                mask = (torch.arange(states.shape[1], device=device) < steps[:, None]).to(states.dtype)
                _wait()
            with stages("decode"):
                tokens, *_ = search(prompts, states, mask)
                _wait()
        return tokens[:, len(job.prompt) :].tolist()

    return run


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    work(load)
