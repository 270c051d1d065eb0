"""A server whose texts have a fixed length. `canary bench` runs it in a process of its own.

    python -m server.cli.bench.paced MODEL DTYPE TOKENS_PER_S

Everything except the end of a text is as in `canary serve`.
"""

import sys
from dataclasses import replace

from model.canary.generate import RunningBatch
from model.canary.model import CanaryModel
from model.canary.rows import Utterance
from model.decoding import DecodingOptions, Encoded
from server.cli.bench.stages import EndlessBatch
from server.cli.serve import serve


def pace(tokens_per_s: float) -> None:
    """Make every Canary in this process write `tokens_per_s` tokens for each second of audio."""
    own_limit = CanaryModel.prompted

    def prompted(
        canary: CanaryModel, key: int, encoded: Encoded, prompt: list[int], options: DecodingOptions
    ) -> Utterance:
        tokens = max(1, round(tokens_per_s * encoded.vectors.shape[0] * canary.config.step_s))
        return replace(own_limit(canary, key, encoded, prompt, options), limit=tokens)

    def running_batch(canary: CanaryModel) -> RunningBatch:
        return EndlessBatch(canary)

    CanaryModel.prompted, CanaryModel.running_batch = prompted, running_batch  # type: ignore[method-assign]


if __name__ == "__main__":
    model, dtype, tokens_per_s = sys.argv[1:]
    is_paced = float(tokens_per_s) > 0
    if is_paced:
        pace(float(tokens_per_s))
    # Random weights write loops; decoding those again would only distort the figures.
    serve(model=(model,), dtype=dtype or None, port=0, loop_guard=False if is_paced else None)
