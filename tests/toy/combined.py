"""One archive of a model and its aligner, laid out as canary-1b-v2's."""

import tarfile
from pathlib import Path, PurePosixPath

ITS_OWN = ("model_config.yaml", "model_weights.ckpt")


def with_aligner(model: Path, aligner: Path, out: Path) -> Path:
    """`out`: the files of both archives, the aligner's configuration and weights as `timestamps_asr_…`."""
    with tarfile.open(out, "w:") as both:
        for path, prefix in ((model, ""), (aligner, "timestamps_asr_")):
            with tarfile.open(path) as archive:
                for member in (member for member in archive if member.isfile()):
                    name = PurePosixPath(member.name).name
                    member.name = f"./{prefix}{name}" if name in ITS_OWN else f"./{name}"
                    both.addfile(member, archive.extractfile(member))
    return out
