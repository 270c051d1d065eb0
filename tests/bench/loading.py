"""How long a converted model takes to load, in processes of their own: in float32 and in 8 bits.

    python -m tests.bench.loading canary-180m-flash.nemo
    python -m tests.bench.loading canary-180m-flash.nemo --rounds 9

The files are in the system's page cache. The CPU time is measured beside the time by the clock, since it says more on a
machine that is not idle.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from convert.convert import ConversionConfig, convert
from model.cpu.packed_file import path_beside

# MLX and numpy are imported by then, as in a server.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from model.loading import load

began, cpu = time.monotonic(), time.process_time()
load(Path(sys.argv[1]), "float32")
print(json.dumps({
    "load": time.monotonic() - began,
    "cpu": time.process_time() - cpu,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
}))
"""


def loaded(folder: Path) -> dict[str, float]:
    """Seconds by the clock and of the CPU, and the peak in MB, of one process that loads it."""
    child = subprocess.run([sys.executable, "-c", CHILD, folder], capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def row(name: str, runs: Iterable[dict[str, float]]) -> str:
    runs = list(runs)
    load, cpu, peak = (median(run[key] for run in runs) for key in ("load", "cpu", "peak"))
    fastest = min(run["load"] for run in runs)
    return f"| {name} | {load:.2f} | {fastest:.2f} | {cpu:.2f} | {peak:.0f} MB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    print("| | seconds | fastest | CPU seconds | peak |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for bits in (None, 8):
            name = f"{bits} bits" if bits else "float32"
            folder = convert(ConversionConfig(source=options.archive, output=Path(scratch) / name, quantize=bits))
            kept = path_beside(folder / "model.safetensors")
            # The first load of 8 bits keeps them for the next ones.
            loaded(folder)
            if kept.exists():
                first = []
                for _ in range(options.rounds):
                    kept.unlink()
                    first.append(loaded(folder))
                print(row(f"{name}, for the first time", first), flush=True)
            print(row(name, [loaded(folder) for _ in range(options.rounds)]), flush=True)


if __name__ == "__main__":
    main()
