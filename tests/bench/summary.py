"""What a comparison found, as tables to read and as a plot.

python -m tests.bench.summary RESULTS     # peers.md and peers.svg again, from peers.json
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Results = Sequence[Mapping[str, Any]]


def table(results: Results) -> str:
    """Markdown: a line a side, a column a case, RTFx and in parentheses its ratio to the first side's."""
    names = list(dict.fromkeys(name for result in results for name in result["sides"]))
    lines = ["| RTFx | " + " | ".join(result["case"] for result in results) + " |", "|---" * (1 + len(results)) + "|"]
    for name in names:
        cells = [_cell(result["sides"], name) for result in results]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(sides: Mapping[str, Any], name: str) -> str:
    if name not in sides:
        return "one at a time"
    if "error" in sides[name]:
        return "failed"
    first = next(iter(sides))
    ratio = sides[name]["rtfx"] / sides[first]["rtfx"]
    return f"{sides[name]['rtfx']:.1f}" + ("" if name == first else f" ({ratio:.2f})")


def details(results: Results) -> str:
    """Markdown: seconds by stage."""
    lines = [
        "| audio | | features s | encode s | decode s | RTFx | CPU s | same tokens | rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        name = f"{result['case']}, {_counts(result['tokens'])} tokens"
        for side, r in result["sides"].items():
            if "error" in r:
                lines.append(f"| {name} | {side} | {r['error']} |")
            else:
                same = "" if r["same_tokens"] is None else f"{100 * r['same_tokens']:.0f} %"
                lines.append(
                    f"| {name} | {side} | {r['features']:.3f} | {r['encode']:.2f} | {r['decode']:.2f} "
                    f"| {r['rtfx']:.1f} | {r['cpu']:.1f} | {same} | {r['rounds']} |"
                )
            name = ""
    return "\n".join(lines)


def _counts(tokens: Sequence[int]) -> str:
    return f"{min(tokens)}" if min(tokens) == max(tokens) else f"{min(tokens)} to {max(tokens)}"


def plot(measured: Mapping[str, Any], path: Path) -> None:
    """Bars of RTFx, a panel a case."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    results = measured["results"]
    names = list(dict.fromkeys(name for result in results for name in result["sides"]))
    figure, panels = pyplot.subplots(
        1, len(results), figsize=(3.2 * len(results), 0.42 * len(names) + 1.3), layout="constrained", squeeze=False
    )
    threads = f"{measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"
    figure.suptitle(f"{measured['model']}, {threads}: seconds of audio done in a second", fontsize=10)
    for axes, result in zip(panels[0], results, strict=True):
        done = {name: side["rtfx"] for name, side in result["sides"].items() if "rtfx" in side}
        shown = [name for name in names if name in done]
        first = next(iter(done))
        bars = axes.barh(
            [names.index(name) for name in shown],
            [done[name] for name in shown],
            color=["tab:orange" if name.startswith(first) else "tab:blue" for name in shown],
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set(title=result["case"], xlim=(0, 1.18 * max(done.values())), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names if axes is panels[0][0] else [""] * len(names))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def main() -> None:
    folder = Path(sys.argv[1])
    measured = json.loads((folder / "peers.json").read_text(encoding="utf-8"))
    results = measured["results"]
    (folder / "peers.md").write_text(f"{table(results)}\n\n{details(results)}\n", encoding="utf-8")
    plot(measured, folder / "peers.svg")


if __name__ == "__main__":
    main()
