"""The figures of `canary bench` as Markdown tables and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]

# The title of each part of a result, and the heading, key and format of its columns.
_TABLES: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "single": (
        "One stream, a fixed number of tokens",
        [
            ("audio s", "audio_s", "g"),
            ("tokens", "tokens", "d"),
            ("features s", "features_s", ".3f"),
            ("encode s", "encode_s", ".3f"),
            ("decode s", "decode_s", ".3f"),
            ("RTFx", "rtfx", ".1f"),
            ("CPU s", "cpu_s", ".2f"),
        ],
    ),
    "load": (
        "Requests of 4 to 35 s over HTTP",
        [
            ("clients", "concurrency", "d"),
            ("requests", "requests", "d"),
            ("audio s per s", "throughput", ".1f"),
            ("p50 s", "p50_s", ".2f"),
            ("p95 s", "p95_s", ".2f"),
            ("first segment s", "first_segment_p50_s", ".2f"),
            ("peak MB", "server_peak_mb", ".0f"),
        ],
    ),
    "decode": (
        "A decode step by rows in the batch",
        [
            ("audio s", "audio_s", "g"),
            ("rows", "rows", "d"),
            ("step ms", "step_ms", ".1f"),
            ("ms per row", "row_ms", ".2f"),
        ],
    ),
    "encode": (
        "Encoding by length",
        [("audio s", "audio_s", "g"), ("encode s", "encode_s", ".3f"), ("ms per audio s", "per_audio_s_ms", ".1f")],
    ),
}


def tables(result: Mapping[str, Any]) -> str:
    """All figures, in Markdown."""
    model, system = result["model"], result["system"]
    times = [f"loaded in {result['load_s']:.1f} s"]
    if result["conversion_s"] is not None:
        times.append(f"converted in {result['conversion_s']:.1f} s")
    lines = [
        f"{model['name']}, {model['dtype']}, {model['weights_mb']:.0f} MB of weights; {', '.join(times)}",
        f"{system['device']}; {system['blas']}; threads: {system['threads'] or 'not limited'}; {system['platform']}",
    ]
    for part, (title, columns) in _TABLES.items():
        if result[part]:
            lines += ["", f"{title}:", "", *_table(result[part], columns)]
    return "\n".join(lines)


def _table(rows: Rows, columns: list[tuple[str, str, str]]) -> list[str]:
    cells = [[heading for heading, _, _ in columns]]
    for row in rows:
        cells.append(["" if row[key] is None else format(row[key], form) for _, key, form in columns])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Decode cost by rows, encode cost by length, and throughput and latency by clients. Raises ImportError."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    parts = [part for part in _PANELS if result[part]]
    figure, panels = pyplot.subplots(
        1, len(parts) or 1, figsize=(4.4 * (len(parts) or 1), 4), layout="constrained", squeeze=False
    )
    figure.suptitle(_heading(result), fontsize=10)
    for part, axes in zip(parts, panels[0], strict=False):
        _PANELS[part](axes, result[part])
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _from_zero(rows: Rows, key: str) -> tuple[float, float]:
    """Limits of an axis from zero, with some room above the highest value."""
    return 0, 1.1 * max(_column(rows, key))


def _plot_decoding(axes: Any, rows: Rows) -> None:
    for audio_s in dict.fromkeys(_column(rows, "audio_s")):
        of_length = [row for row in rows if row["audio_s"] == audio_s]
        axes.plot(_column(of_length, "rows"), _column(of_length, "row_ms"), "o-", label=f"{audio_s:g} s per row")
    counts = list(dict.fromkeys(_column(rows, "rows")))
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="rows in the batch", ylabel="decode step, ms per row")
    axes.set_ylim(_from_zero(rows, "row_ms"))
    axes.legend()
    axes.grid(alpha=0.3)


def _plot_encoding(axes: Any, rows: Rows) -> None:
    axes.plot(_column(rows, "audio_s"), _column(rows, "per_audio_s_ms"), "o-")
    axes.set(xlabel="seconds of audio", ylabel="encoding, ms per second of audio")
    axes.set_ylim(_from_zero(rows, "per_audio_s_ms"))
    axes.grid(alpha=0.3)


def _plot_load(axes: Any, rows: Rows) -> None:
    clients = range(len(rows))
    axes.plot(clients, _column(rows, "throughput"), "o-")
    axes.set_xticks(clients, [str(count) for count in _column(rows, "concurrency")])
    axes.set(xlabel="clients", ylabel="seconds of audio per second")
    axes.set_ylim(_from_zero(rows, "throughput"))
    axes.grid(alpha=0.3)
    latency = axes.twinx()
    latency.plot(clients, _column(rows, "p95_s"), "s--", color="tab:red")
    latency.set_ylabel("p95 latency, s", color="tab:red")
    latency.set_ylim(_from_zero(rows, "p95_s"))


_PANELS = {"decode": _plot_decoding, "encode": _plot_encoding, "load": _plot_load}


def _heading(result: Mapping[str, Any]) -> str:
    threads = result["system"]["threads"]
    limit = f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""
    return f"{result['model']['name']}, {result['model']['dtype']}, {result['system']['device']}{limit}"


def _column(rows: Rows, key: str) -> list[Any]:
    return [row[key] for row in rows]
