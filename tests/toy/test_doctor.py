"""What `canary doctor` finds out with the toy: a fault planted for each check of the model and of its speed."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from model.arrays import numpy as numpy_arrays
from model.encoder import FeedForward
from model.loading import memory_need
from server.cli.doctor import models, speed
from server.cli.doctor.models import Models, samples
from server.cli.doctor.report import found
from server.settings import Settings
from tests.primitives import of_encoder_layer, of_step


def settings(**given) -> Settings:
    return Settings(_env_file=None, **given)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Models:
    return Models(settings(model=("toy",), dtype="float32"), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def say(monkeypatch):
    """say(text=…, words=…): keep only the shortest recording, and change what is said in it."""
    shortest = min(samples(), key=lambda sample: len(sample.waveform))

    def change(**told) -> None:
        monkeypatch.setattr(speed, "samples", lambda: (replace(shortest, told=shortest.told | told),))

    return change


def test_a_wrong_text_is_told_with_what_is_said(toy, say):
    say(text="La maison est vide.")
    finding = speed.texts(toy.toy)
    assert finding.status == "FAILED"
    assert finding.value.startswith("2 of 4 exact in float32, alone and side by side; fr.flac to fr: ")
    assert "La maison noire est nouvelle.\" instead of 'La maison est vide.'" in finding.value


def test_a_wrong_time_is_told(toy, say):
    words = samples()[3].told["words"]
    say(words=[word | {"start": word["start"] + 0.5} for word in words])
    finding = speed.texts(toy.toy)
    assert (finding.status, "fr.flac: a word's time is wrong by 0." in finding.value) == ("FAILED", True)


def test_a_right_text_is_no_failure(toy, say):
    say()
    assert speed.texts(toy.toy).value == "4 of 4 exact in float32, alone and side by side"


@pytest.mark.parametrize(("share", "status"), [(0.9, "FAILED"), (1.2, "warning"), (8.0, "ok"), (None, "ok")])
def test_a_model_that_does_not_fit_is_refused(toy, monkeypatch, share, status):
    need = memory_need(toy.folder, "float32")
    room = share and (int(share * need.total), "on the GPU")
    monkeypatch.setattr("model.memory.available", lambda: room)
    finding = speed.memory(toy)
    assert finding.status == status
    assert finding.value.startswith(f"toy: {need}")
    assert (finding.figures["weights"], finding.figures["usable_bytes"]) == (need.weights, room and room[0])


def test_a_model_slower_than_twice_real_time_is_a_warning(toy, monkeypatch):
    now = iter(np.arange(0, 1000, 6.0))
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(speed, "served", lambda canary, passes: [])
    finding = speed.speed(toy.toy)
    assert (finding.status, finding.value[:29]) == ("warning", "1.4 times real time alone, 17")


def test_memory_that_grows_with_every_request_is_a_warning(toy, monkeypatch):
    peaks = iter(np.arange(1, 1000) * 50e6)
    monkeypatch.setattr(speed, "served", lambda canary, passes: [])
    monkeypatch.setattr(speed, "MOST_WATCHED_S", 0.0)
    monkeypatch.setattr(speed, "_peak_bytes", lambda: next(peaks))
    finding = speed.steady_memory(toy.toy, lambda what: None)
    assert finding.status == "warning"
    assert finding.value == "peak 200 MB after 32 requests, 100 MB more than halfway"


@pytest.fixture
def toy_as_on_a_gpu(toy, monkeypatch):
    monkeypatch.setenv("CANARY_ARRAYS", "mlx")
    return Models(toy.settings, toy.cache)


def test_primitives_are_counted_in_the_models_own_step_and_layer_as_on_a_gpu(toy, toy_as_on_a_gpu):
    finding = speed.primitives(toy_as_on_a_gpu.toy)
    layers = toy_as_on_a_gpu.toy.config.decoder.num_layers
    assert finding.status == "ok"
    assert finding.figures == {
        "step": of_step(layers).total(),
        "decoder_layers": layers,
        "encoder_layer": of_encoder_layer(padded=False).total(),
        "encoder_layer_padded": of_encoder_layer(padded=True).total(),
    }
    assert f"{finding.figures['step']} in a step of {layers} decoder layers" in finding.value


def test_one_primitive_more_in_a_layer_is_counted(toy_as_on_a_gpu, monkeypatch):
    usual = speed.primitives(toy_as_on_a_gpu.toy).figures["encoder_layer"]
    feed_forward = FeedForward.__call__
    monkeypatch.setattr(FeedForward, "__call__", lambda self, x: mx.negative(feed_forward(self, x)))
    assert speed.primitives(toy_as_on_a_gpu.toy).figures["encoder_layer"] == usual + 2


def test_numpys_arrays_have_no_primitives_to_count():
    assert speed.primitives(SimpleNamespace(xp=numpy_arrays)).figures == {}  # type: ignore[arg-type]


def test_look_ahead_is_compared_with_none_as_on_a_gpu(toy_as_on_a_gpu):
    finding = speed.look_ahead(toy_as_on_a_gpu.toy)
    assert finding.status == "ok"
    assert set(finding.figures["peak_bytes"]) == {"on", "off"}
    assert min(finding.figures["peak_bytes"].values()) > 0


def test_texts_that_look_ahead_changes_are_refused(toy_as_on_a_gpu, monkeypatch):
    looking = speed._looking
    wrong = lambda canary, ahead: replace(looking(canary, ahead), tokens=[[int(ahead)]])  # noqa: E731
    monkeypatch.setattr(speed, "_looking", wrong)
    finding = speed.look_ahead(toy_as_on_a_gpu.toy)
    assert (finding.status, "the texts differ" in finding.value) == ("FAILED", True)


def test_an_unknown_model_fails_and_the_toy_is_tried_instead(tmp_path, say):
    say()
    tried = Models(settings(model=("no-such-model",)), tmp_path)
    names = []
    for name, check in speed.checks(tried, quick=False, progress=lambda what: None):
        names.append((name, found(name, check).finding.status))
    assert names == [("model", "FAILED"), ("toy's texts", "ok")]
    assert not tried.needs_download


def test_a_model_that_is_not_downloaded_is_not_downloaded_now(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_is_downloaded", lambda repo, revision: False)
    tried = Models(settings(model=("canary-1b-v2",), cache=tmp_path), tmp_path)
    assert tried.problem is not None
    assert (tried.problem.status, tried.needs_download) == ("warning", True)


def test_a_damaged_model_fails_and_is_not_measured(toy, tmp_path, say):
    say()
    shutil.copytree(toy.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged")
    tried = Models(settings(model=(str(tmp_path / "damaged"),)), tmp_path)
    statuses = {}
    for name, check in speed.checks(tried, quick=False, progress=lambda what: None):
        statuses[name] = found(name, check).finding.status
    assert statuses == {"memory": "FAILED", "loading": "FAILED", "toy's texts": "ok"}
