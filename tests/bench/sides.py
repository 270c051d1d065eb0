"""The sides of a comparison: the programs, their environments and weights, and the processes they run in."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.hub import resolve
from server.cli.bench.command import THREAD_VARIABLES

HERE = Path(__file__).parent
OURS = "canary-server"
# Random archives of these published shapes can be built.
SHAPES = ("canary-180m-flash", "parakeet-tdt_ctc-110m", "parakeet-tdt-0.6b-v3")


@dataclass(frozen=True)
class Peer:
    """A program that runs the model.

    environment: of the Python that runs `script`, None being this one; batches: whether it decodes several audios
    together; weights: what is made of the archive for it; options: of the script, after the weights; blas: what
    `blas.py`
    puts in the place of MLX's own.
    """

    environment: str | None
    script: str
    batches: bool = True
    weights: str = "nemo"
    options: tuple[str, ...] = ()
    blas: str = ""


CANARY = {
    OURS: Peer(None, "peer_ours.py"),
    "canary-server-int8": Peer(None, "peer_ours.py", weights="packed"),
    "nemo": Peer("nemo", "peer_nemo.py"),
    "transformers": Peer("transformers", "peer_transformers.py", options=("float32",)),
    "transformers-bfloat16": Peer("transformers", "peer_transformers.py", options=("bfloat16",)),
    "onnxruntime": Peer("onnxruntime", "peer_onnxruntime.py", weights="onnx", options=("cached",)),
    "onnxruntime-int8": Peer("onnxruntime", "peer_onnxruntime.py", weights="onnx-int8", options=("cached",)),
    "onnxruntime-nemo": Peer("onnxruntime", "peer_onnxruntime.py", weights="onnx", options=("nemo",)),
    "onnxruntime-nemo-int8": Peer("onnxruntime", "peer_onnxruntime.py", weights="onnx-int8", options=("nemo",)),
    "mlx-audio": Peer("mlx-audio", "peer_mlx_audio.py", batches=False, blas="mkl"),
    "mlx-audio-openblas": Peer("mlx-audio", "peer_mlx_audio.py", batches=False, blas="openblas"),
    "canary-mlx": Peer("canary-mlx", "peer_canary_mlx.py", batches=False, blas="mkl"),
    "transcribe.cpp": Peer("transcribe-cpp", "peer_transcribe_cpp.py", weights="F32.gguf"),
    "transcribe.cpp-q8": Peer("transcribe-cpp", "peer_transcribe_cpp.py", weights="Q8_0.gguf"),
}
PARAKEET = {
    OURS: Peer(None, "parakeet_ours.py"),
    "canary-server-int8": Peer(None, "parakeet_ours.py", weights="packed"),
    "nemo": Peer("nemo", "parakeet_nemo.py"),
    "onnx-asr": Peer("onnxruntime", "parakeet_onnx_asr.py", weights="onnx-asr"),
    "onnx-asr-int8": Peer("onnxruntime", "parakeet_onnx_asr.py", weights="onnx-asr-int8"),
    "mlx-audio": Peer("mlx-audio", "parakeet_mlx_audio.py", blas="mkl"),
    "parakeet-mlx": Peer("parakeet-mlx", "parakeet_parakeet_mlx.py", blas="mkl"),
    "transcribe.cpp": Peer("transcribe-cpp", "parakeet_transcribe_cpp.py", weights="F32.gguf"),
    "transcribe.cpp-q8": Peer("transcribe-cpp", "parakeet_transcribe_cpp.py", weights="Q8_0.gguf"),
}


@dataclass
class Side:
    """A running worker."""

    name: str
    process: "subprocess.Popen[str]"

    def asked(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job. Exits with a message if the worker has ended."""
        assert self.process.stdin
        # A worker that has ended gives no answer.
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}; its own message is above")
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def set_up(folder: Path, peers: Iterable[Peer]) -> None:
    """An environment for each of `peers`, of the versions that their requirements pin."""
    for name in dict.fromkeys(peer.environment for peer in peers if peer.environment):
        environment = folder / name
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        requirements = HERE / f"requirements-{name}.txt"
        subprocess.run([environment / "bin" / "pip", "install", "-r", requirements], check=True)


def started(name: str, peer: Peer, environments: Path, weights: Path, threads: int) -> Side:
    """A worker that is loading; its first answer says that it has loaded."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": "."}
    launcher = [HERE / "blas.py", peer.blas] if peer.blas else []
    command = [_python(peer.environment, environments), *launcher, HERE / peer.script, weights, *peer.options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parents[1]
    )
    return Side(name, process)


def random_archive(shape: str, environments: Path) -> Path:
    """An archive of a published shape with random weights, built once."""
    made = environments / "weights" / f"{shape}.nemo"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(".partial.nemo")
        _run("nemo", environments, "-m", "tests.bench.build_archive", shape, partial)
        partial.rename(made)
    return made


def weights_for(peer: Peer, environments: Path, archive: Path, family: str) -> Path:
    """What a peer loads: the archive itself, or what is made of it once."""
    if peer.weights == "nemo":
        return archive
    if peer.weights == "packed":
        return resolve(archive, dtype="float32", quantize=8)
    made = environments / "weights" / f"{archive.stem}-{archive.stat().st_size}-{peer.weights}"
    made.parent.mkdir(parents=True, exist_ok=True)
    if made.exists():
        return made
    partial = made.with_name(f"{made.name}.partial")
    if peer.weights.endswith("-int8"):
        float32 = replace(peer, weights=peer.weights.removesuffix("-int8"))
        exported = weights_for(float32, environments, archive, family)
        _run("onnxruntime", environments, HERE / "quantize_onnx.py", exported, partial)
    elif peer.weights.startswith("onnx"):
        _run("nemo", environments, HERE / f"export_onnx_{family}.py", archive, partial)
    else:
        kind = peer.weights.removesuffix(".gguf")
        _run("transcribe-cpp", environments, HERE / f"export_gguf_{family}.py", archive, partial, kind)
    return partial.rename(made)


def _run(environment: str, environments: Path, *arguments: Path | str) -> None:
    command = [_python(environment, environments), *arguments]
    own = {**os.environ, "PYTHONPATH": "."}
    subprocess.run(command, check=True, stdout=sys.stderr, env=own, cwd=HERE.parents[1])


def _python(environment: str | None, environments: Path) -> Path | str:
    return environments / environment / "bin" / "python" if environment else sys.executable
