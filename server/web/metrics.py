"""Prometheus metrics, served at /metrics."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from server.engine.failure import MESSAGES
from server.engine.passes import Timing
from server.engine.registry import Engines
from server.live.capacity import LiveCapacity

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The metrics of one application. `text()` renders them in Prometheus' text format."""

    def __init__(self, engines: Engines, live: LiveCapacity):
        registry = self._registry = CollectorRegistry()
        registry.register(_EngineStates(engines))
        self._requests = Counter(
            "canary_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._request_s = Histogram(
            "canary_request_seconds", "Seconds from a request to the end of its response.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.live_sessions = Gauge("canary_live_sessions", "Open live sessions.", registry=registry)
        load = Gauge(
            "canary_live_load",
            "Share of the model's time that the open live sessions need at the widest step, 0 to 1.",
            registry=registry,
        )
        load.set_function(lambda: live.load)
        load_of_one = Gauge(
            "canary_live_load_of_one",
            "Share that one live session needs while somebody speaks; 0 until it was measured.",
            registry=registry,
        )
        load_of_one.set_function(lambda: live.load_of_one)
        self._audio_s = Counter("canary_audio_seconds", "Seconds of audio transcribed.", registry=registry)
        self._factor = Histogram(
            "canary_real_time_factor", "Processing time per second of audio.", buckets=_FACTORS, registry=registry
        )
        self._stage_s = Histogram(
            "canary_stage_seconds",
            "Seconds that a transcription spends in each stage: queue, audio, features, encode, decode.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )

        self._restarts = Counter(
            "canary_restarts", "Times the supervisor started the server again.", ["reason"], registry=registry
        )

    def count_restarts(self, restarts: Mapping[str, int]) -> None:
        """Those before this process began, by reason."""
        for reason, count in restarts.items():
            self._restarts.labels(reason).inc(count)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def count_transcription(self, audio_s: float, total_s: float, audio_decode_s: float, timing: Timing) -> None:
        self._audio_s.inc(audio_s)
        if audio_s > 0:
            self._factor.observe(total_s / audio_s)
        stages = {
            "queue": timing.queue_s,
            "audio": audio_decode_s,
            "features": timing.features_s,
            "encode": timing.encode_s,
            "decode": timing.decode_s,
        }
        for stage, seconds in stages.items():
            self._stage_s.labels(stage).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _EngineStates(Collector):
    """The state of the engines, read when Prometheus asks for it."""

    def __init__(self, engines: Engines):
        self._engines = engines

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        waiting = GaugeMetricFamily("canary_queue_depth", "Passes waiting for the model.", labels=["model"])
        running = GaugeMetricFamily("canary_running", "Passes in the running batch.", labels=["model"])
        fill = GaugeMetricFamily("canary_batch_fill", "Share of decoder rows in use, 0 to 1.", labels=["model"])
        loaded = GaugeMetricFamily("canary_model_loaded", "1 if the model is in memory, else 0.", labels=["model"])
        failures = CounterMetricFamily(
            "canary_model_failures", "Times the model failed, by reason.", labels=["model", "reason"]
        )
        reloads = CounterMetricFamily(
            "canary_model_reloads", "Times the model was loaded again after it failed.", labels=["model"]
        )
        spent = CounterMetricFamily(
            "canary_model_seconds", "The model's time spent on live sessions and on files.", labels=["model", "work"]
        )
        recordings = GaugeMetricFamily(
            "canary_waiting_recordings", "Recordings waiting for a turn, not decoded yet.", labels=["model"]
        )
        seconds = GaugeMetricFamily(
            "canary_waiting_audio_seconds", "Seconds of audio in the recordings that wait.", labels=["model"]
        )
        for model in self._engines.models:
            for reason in MESSAGES:
                failures.add_metric([model.id, reason], model.failures[reason])
            reloads.add_metric([model.id], model.reloads)
            for work, spent_s in model.engine.spent_s.items():
                spent.add_metric([model.id, work], spent_s)
            recordings.add_metric([model.id], model.admission.waiting)
            seconds.add_metric([model.id], model.admission.waiting_s)
            waiting.add_metric([model.id], model.engine.waiting)
            running.add_metric([model.id], model.engine.running)
            fill.add_metric([model.id], model.engine.rows / self._engines.max_rows)
            loaded.add_metric([model.id], float(model.state == "ready"))
        yield from (waiting, recordings, seconds, running, fill, loaded, failures, reloads, spent)
