"""Combines a model and an aligner into one archive with the layout of canary-1b-v2's."""

import tarfile
from pathlib import Path, PurePosixPath

PREFIXED = ("model_config.yaml", "model_weights.ckpt")


def with_aligner(model: Path, aligner: Path, out: Path) -> Path:
    """Write the files of both archives to `out`, the aligner's configuration and weights as `timestamps_asr_…`."""
    with tarfile.open(out, "w:") as combined:
        for path, prefix in ((model, ""), (aligner, "timestamps_asr_")):
            with tarfile.open(path) as archive:
                for member in (member for member in archive if member.isfile()):
                    name = PurePosixPath(member.name).name
                    member.name = f"./{prefix}{name}" if name in PREFIXED else f"./{name}"
                    combined.addfile(member, archive.extractfile(member))
    return out
