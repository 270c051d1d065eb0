"""What a comparison found, as tables to read and as a plot.

python -m tests.bench.summary RESULTS/peers.json     # peers.md and peers.svg again
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Results = Sequence[Mapping[str, Any]]


def table(measured: Mapping[str, Any]) -> str:
    """Markdown: a line a side, a column a case, and what was measured on which CPU.

    A cell: times real time, min–median–max of the rounds, the median's ratio to the first side's, and CPU seconds.
    """
    results = measured["results"]
    names = list(dict.fromkeys(name for result in results for name in result["sides"]))
    lines = [
        f"{measured['model']} on {measured['machine']['cpu']}, {_threads(measured)}. Times real time, min–median–max "
        f"(ratio of the median to {names[0]}'s), median CPU seconds:",
        "",
        "| | " + " | ".join(result["case"] for result in results) + " |",
        "|---" * (1 + len(results)) + "|",
    ]
    for name in names:
        cells = [_cell(result["sides"], name) for result in results]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(sides: Mapping[str, Any], name: str) -> str:
    if name not in sides:
        return "one at a time"
    side = sides[name]
    if "error" in side:
        return "failed"
    ours = next(iter(sides.values()))
    ratio = "" if side is ours else f" ({side['rtfx'][1] / ours['rtfx'][1]:.2f})"
    return f"{_range(side['rtfx'], 1)}{ratio}, {side['cpu'][1]:.2f} s"


def details(results: Results) -> str:
    """Markdown: a line a side and case. Stages are medians, in seconds; the rest is min–median–max of the rounds."""
    lines = [
        "| audio | | × real time | seconds | CPU seconds | features | encode | decode | tokens | same | rounds |",
        "|---" * 11 + "|",
    ]
    for result in results:
        name = result["case"]
        for side, r in result["sides"].items():
            if "error" in r:
                cells = [r["error"], *[""] * 8]
            else:
                cells = [
                    _range(r["rtfx"], 1),
                    _range(r["total"], 2),
                    _range(r["cpu"], 2),
                    *(f"{r[stage]:.3f}" for stage in ("features", "encode", "decode")),
                    str(r["tokens"]),
                    f"{100 * r['same_tokens']:.0f} %",
                    str(r["rounds"]),
                ]
            lines.append(f"| {name} | {side} | {' | '.join(cells)} |")
            name = ""
    return "\n".join(lines)


def _range(values: Sequence[float], digits: int) -> str:
    return "–".join(f"{value:.{digits}f}" for value in values)


def _threads(measured: Mapping[str, Any]) -> str:
    return f"{measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"


def plot(measured: Mapping[str, Any], path: Path) -> None:
    """Bars of times real time, a panel a case: the median, with a line from the slowest round to the fastest."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    results = measured["results"]
    names = list(dict.fromkeys(name for result in results for name in result["sides"]))
    figure, panels = pyplot.subplots(
        1, len(results), figsize=(3.2 * len(results), 0.42 * len(names) + 1.3), layout="constrained", squeeze=False
    )
    title = f"{measured['model']} on {measured['machine']['cpu']}, {_threads(measured)}: times real time"
    figure.suptitle(title, fontsize=10)
    for axes, result in zip(panels[0], results, strict=True):
        done = {name: side["rtfx"] for name, side in result["sides"].items() if "rtfx" in side}
        least, median, most = zip(*done.values(), strict=True)
        bars = axes.barh(
            [names.index(name) for name in done],
            median,
            xerr=[np.subtract(median, least), np.subtract(most, median)],
            color=["tab:orange" if name.startswith(names[0]) else "tab:blue" for name in done],
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set(title=result["case"], xlim=(0, 1.18 * max(most)), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names if axes is panels[0][0] else [""] * len(names))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def main() -> None:
    file = Path(sys.argv[1])
    measured = json.loads(file.read_text(encoding="utf-8"))
    text = f"{table(measured)}\n\n{details(measured['results'])}\n"
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(measured, file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
