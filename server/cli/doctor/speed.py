"""A model on this device as the server runs it: exact texts, times, look-ahead, memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.config import SAMPLE_RATE
from model.decoding import DecodingOptions
from model.task import Task
from server.cli.doctor.machine import GB
from server.cli.doctor.models import ROWS, Models, Sample, pass_of, samples, served
from server.cli.doctor.report import WRONG, Check, Finding, failed, ok, warning

if TYPE_CHECKING:
    from model.canary.model import CanaryModel
    from model.canary.rows import Utterance

# How far a word's times may be from those spoken.
TIME_ERROR_S = 0.16
# Lengths of the requests that memory is watched over, and when to stop.
REQUEST_LENGTHS_S = (2.0, 9.0, 4.0, 15.0, 1.0, 22.0, 6.0, 12.0)
MOST_REQUESTS, MOST_WATCHED_S = 500, 4.0
# Memory that may come on top in the second half of the requests.
GROWTH_BYTES = 64e6
# Tokens written in each row to compare look-ahead with none, and steps timed.
TOKENS, STEPS = 24, 8
# The share of memory from which other programs may be in the way.
TIGHT = 0.7


def checks(models: Models, quick: bool, progress: Callable[[str], None]) -> Iterator[Check]:
    """In the order of the screen. Each is run before the next one is asked for. quick: measure nothing."""
    if problem := models.problem:
        yield "model", lambda: problem
    else:
        yield "memory", lambda: memory(models)
        yield "loading", lambda: loading(models)
    yield "toy's texts", lambda: texts(models.toy)
    if models.is_loaded and not quick:
        yield "decoding", lambda: decoding(models.chosen)
        yield "primitives", lambda: primitives(models.chosen)
        yield "look-ahead", lambda: look_ahead(models.chosen)
        yield "speed", lambda: speed(models.chosen)
        yield "steady memory", lambda: steady_memory(models.chosen, progress)


def memory(models: Models) -> Finding:
    """Whether the model fits."""
    from model.loading import memory_need
    from model.memory import available

    need = memory_need(models.folder, models.dtype)
    room, where = available() or (None, "")
    told = f"{models.source}: {need}"
    figures = {**asdict(need), "usable_bytes": room}
    if room is None:
        return ok(told, **figures)
    told += f", of {room / GB:.1f} GB {where}"
    if need.total > room:
        return failed(told, "choose a smaller model, or --quantize 8", **figures)
    if need.total > TIGHT * room:
        return warning(told, "close other programs, or use --quantize 8", **figures)
    return ok(told, **figures)


def loading(models: Models) -> Finding:
    """Load the model, and encode and write once, so that later figures are of a warm device."""
    began = time.monotonic()
    canary = models.chosen
    load_s = time.monotonic() - began
    list(served(canary, [pass_of(samples()[0].waveform)] * 2))
    warm_s = time.monotonic() - began - load_s
    told = f"{canary.config.name} in {canary.dtype}: loaded in {load_s:.2f} s, first texts after {warm_s:.2f} s more"
    return ok(told, load_s=load_s, first_s=warm_s)


def texts(toy: "CanaryModel") -> Finding:
    """Whether the toy writes each recording's text and translations, alone and side by side, with the words' times."""
    expected = [(sample, task, text) for sample in samples() for task, text in sample.expected]
    passes = [pass_of(sample.waveform, task) for sample, task, _ in expected]
    together = served(toy, passes)
    alone = [served(toy, [each])[0] for each in passes]
    wrong = []
    for (sample, task, text), *results in zip(expected, alone, together, strict=True):
        for result in results:
            transcript = result.transcripts[0]
            if transcript.text != text:
                wrong.append(f"{sample.name} to {task.target}: {transcript.text!r} instead of {text!r}")
            elif task.timestamps == "word" and (late := _time_error_s(transcript.segments, sample)) > TIME_ERROR_S:
                wrong.append(f"{sample.name}: a word's time is wrong by {late:.2f} s")
    total = 2 * len(expected)
    told = f"{total - len(wrong)} of {total} exact in {toy.dtype}, alone and side by side"
    figures = {"right": total - len(wrong), "texts": total, "wrong": wrong, "dtype": toy.dtype}
    if wrong:
        return failed(f"{told}; {wrong[0]}", WRONG, **figures)
    return ok(told, **figures)


def _time_error_s(segments: Any, sample: Sample) -> float:
    words = [word for segment in segments for word in segment.words]
    pairs = zip(words, sample.told["words"], strict=True)
    return max(max(abs(word.start - told["start"]), abs(word.end - told["end"])) for word, told in pairs)


def decoding(canary: "CanaryModel") -> Finding:
    """How long a decode step takes, for one row and for sixteen."""
    from server.cli.bench.stages import decode_costs

    one, many = (cost.step_ms for cost in decode_costs(canary, [1, ROWS], 10.0))
    return ok(f"a step takes {one:.1f} ms for 1 row, {many:.1f} ms for {ROWS}", step_ms={1: one, ROWS: many})


def primitives(canary: "CanaryModel") -> Finding:
    """How many kernels a GPU launches for a decode step and for an encoder layer of this model."""
    from server.cli.bench.stages import EndlessBatch
    from server.cli.doctor.primitives import of_encoder_layer, of_step

    if not canary.xp.CONCURRENT:
        return ok("numpy's arrays have none: they are computed at once")
    batch = EndlessBatch(canary, look_ahead=False)
    # Rows of unequal lengths: the second one begins a step later.
    for utterance in _utterances(canary, 2):
        batch.join([utterance])
        batch.step()
    step, layers = of_step(batch).total(), canary.config.decoder.num_layers
    layer, padded = (of_encoder_layer(canary.encoder.layers[0], padded).total() for padded in (False, True))
    told = f"{step} in a step of {layers} decoder layers, {layer} in an encoder layer, {padded} where audio is padded"
    return ok(told, step=step, decoder_layers=layers, encoder_layer=layer, encoder_layer_padded=padded)


def look_ahead(canary: "CanaryModel") -> Finding:
    """On a GPU, each step begins before the last one's tokens are known: that changes nothing but time and memory."""
    from model.arrays import as_on_gpu

    if not as_on_gpu():
        return ok("not used on this device")
    on, off = (_looking(canary, ahead) for ahead in (True, False))
    told = "; ".join(
        f"{name}: {each.step_ms:.1f} ms a step, peak {each.peak_bytes / 1e6:.0f} MB"
        for name, each in (("on", on), ("off", off))
    )
    figures = {
        "step_ms": {"on": on.step_ms, "off": off.step_ms},
        "peak_bytes": {"on": on.peak_bytes, "off": off.peak_bytes},
    }
    if on.tokens != off.tokens:
        return failed(f"{told}; the texts differ", WRONG, **figures)
    return ok(told, **figures)


@dataclass(frozen=True)
class _Looking:
    tokens: list[list[int]]
    step_ms: float
    peak_bytes: int


def _looking(canary: "CanaryModel", ahead: bool) -> _Looking:
    """Sixteen rows of one recording, written with or without look-ahead."""
    import mlx.core as mx

    from server.cli.bench.stages import EndlessBatch

    batch = EndlessBatch(canary, look_ahead=ahead)
    batch.join(_utterances(canary, ROWS))
    mx.synchronize()
    mx.reset_peak_memory()
    finished, times = [], []
    while batch.rows:
        began = time.monotonic()
        finished += batch.step()
        times.append(time.monotonic() - began)
    written = [each.tokens for each in sorted(finished, key=lambda each: each.key)]
    return _Looking(written, statistics.median(times) * 1000, mx.get_peak_memory())


def _utterances(canary: "CanaryModel", count: int) -> "list[Utterance]":
    """One recording, to be written `count` times."""
    encoded = canary.encodings([samples()[0].waveform])[0]
    options = DecodingOptions(beam_size=1, max_new_tokens=TOKENS)
    language = samples()[0].told["language"]
    task = Task(language if language in canary.config.languages else canary.config.languages[0])
    return [canary.utterance(key, encoded, task, options) for key in range(count)]


def speed(canary: "CanaryModel") -> Finding:
    """Seconds of audio that are written in a second: of one recording, and of sixteen at once."""
    waveforms = [sample.waveform for sample in samples()]
    waveforms = (waveforms * ROWS)[:ROWS]
    rates = []
    for some in (waveforms[:1], waveforms):
        began = time.monotonic()
        served(canary, [pass_of(waveform) for waveform in some])
        rates.append(sum(map(len, some)) / SAMPLE_RATE / (time.monotonic() - began))
    told = f"{rates[0]:.0f} times real time alone, {rates[1]:.0f} times for {ROWS} at once"
    figures = {"alone": rates[0], "together": rates[1], "clients": ROWS}
    if rates[0] < 2:
        advice = "live captions will lag: choose a smaller model, or close other programs"
        return warning(f"{rates[0]:.1f} times real time alone, {rates[1]:.1f} times for {ROWS}", advice, **figures)
    return ok(told, **figures)


def steady_memory(canary: "CanaryModel", progress: Callable[[str], None]) -> Finding:
    """Whether memory stays level over requests of all lengths. The first half meets each length."""
    voice = np.concatenate([sample.waveform for sample in samples()])
    passes = [pass_of(np.resize(voice, int(length * SAMPLE_RATE))) for length in REQUEST_LENGTHS_S]
    until = time.monotonic() + MOST_WATCHED_S
    peaks: list[float] = []
    while len(peaks) < 4 or (time.monotonic() < until and len(peaks) * len(passes) < MOST_REQUESTS):
        progress(f"memory after {len(peaks) * len(passes)} requests")
        served(canary, passes)
        peaks.append(_peak_bytes())
    growth = peaks[-1] - peaks[(len(peaks) - 1) // 2]
    requests = len(peaks) * len(passes)
    told = f"peak {peaks[-1] / 1e6:.0f} MB after {requests} requests, {growth / 1e6:.0f} MB more than halfway"
    figures = {"requests": requests, "peak_bytes": peaks, "growth_bytes": growth}
    if growth > GROWTH_BYTES:
        return warning(told, "if the server grows over hours, report it with this figure", **figures)
    return ok(told, **figures)


def _peak_bytes() -> float:
    """The most memory that this process has held, and MLX's of it on a GPU."""
    import mlx.core as mx

    from model.arrays import on_cpu

    if not on_cpu():
        return mx.get_peak_memory() + mx.get_cache_memory()
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
