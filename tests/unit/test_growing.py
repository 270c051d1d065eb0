"""Audio that grows: only what is new is encoded, and what is kept never changes."""

import numpy as np
import pytest

import model.listening
from model.cpu.layout import lay_out
from model.subsampling import subsampled
from tests.unit.conftest import noise, tiny_canary

RATE = 16_000


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return noise(12.0, seed=9)


def growing_encoding(canary, waveform, before=None):
    (encoded,) = canary.growing_encodings([waveform], [before])
    return encoded


def difference(a, b) -> float:
    assert np.shape(a) == np.shape(b)
    return float(np.abs(np.array(a, np.float32) - np.array(b, np.float32)).max())


def test_the_first_encoding_of_growing_audio_is_that_of_the_same_audio_as_a_file(canary, sound):
    (whole,) = canary.encodings([sound])
    growing = growing_encoding(canary, sound)
    assert difference(growing.vectors, whole.vectors) < 1e-5
    assert growing.total_steps == whole.total_steps
    memory = canary.decoder.cross_memory(whole.vectors[None], [whole.vectors.shape[0]])
    assert len(growing.memory) == len(memory.layers)
    for kept, computed in zip(growing.memory, memory.layers, strict=True):
        assert difference(kept, computed) < 1e-5
    assert (whole.memory, whole.past) == (None, None)


def test_audio_without_any_settled_steps_is_encoded_whole_however_often_it_grows(canary, sound, monkeypatch):
    monkeypatch.setattr(canary, "_steps_to_settle", 10_000)
    monkeypatch.setattr(model.listening, "GROWTH", 100)
    encoded = None
    for seconds in (1.2, 1.6, 3.0, 5.3):
        encoded = growing_encoding(canary, sound[: int(seconds * RATE)], encoded)
        assert encoded.past.steps == 0
        (whole,) = canary.encodings([sound[: int(seconds * RATE)]])
        assert difference(encoded.vectors, whole.vectors) < 2e-5


def test_growing_audio_may_be_encoded_between_the_layers_of_a_whole_encoding_which_changes_neither(canary, sound):
    half, looks = sound[: len(sound) // 2], []

    def look():
        looks.append(growing_encoding(canary, half))

    (alone,) = canary.encodings([sound])
    (interrupted,) = canary.encodings([sound], look)
    # The model has two layers. A GPU computes four at a time.
    assert len(looks) == (0 if canary.xp.CONCURRENT else 2)
    assert np.array_equal(np.array(interrupted.vectors), np.array(alone.vectors))
    for encoded in looks:
        assert np.array_equal(encoded.vectors, growing_encoding(canary, half).vectors)


def test_a_gpu_lets_others_in_after_every_fourth_layer(sound):
    canary, calls = tiny_canary(n_layers=9), []
    canary.encodings([sound], lambda: calls.append(1))
    assert len(calls) == 2
    lay_out(canary)
    canary.encodings([sound], lambda: calls.append(1))
    assert len(calls) == 2 + 9


def test_kept_steps_never_change_and_only_later_ones_are_computed(canary, sound, monkeypatch):
    monkeypatch.setattr(model.listening, "GROWTH", 100)
    computed = []
    grown = canary.encoder.grown

    def watched(*given):
        ((vectors, past),) = grown(*given)
        computed.append(vectors.shape[1])
        return [(vectors, past)]

    monkeypatch.setattr(canary.encoder, "grown", watched, raising=False)
    encoded = growing_encoding(canary, sound[: 2 * RATE])
    for seconds in (2.4, 2.8, 3.2, 5.0, 5.4):
        before, kept = encoded, encoded.past.steps
        encoded = growing_encoding(canary, sound[: int(seconds * RATE)], before)
        assert encoded.past.steps > kept == encoded.reused
        assert computed[-1] == len(encoded.vectors) - kept
        assert len(encoded.vectors) == subsampled(int(seconds * 100))
        assert difference(encoded.vectors[:kept], before.vectors[:kept]) == 0
        for now, then in zip(encoded.memory, before.memory, strict=True):
            assert difference(now[:, :, :kept], then[:, :, :kept]) == 0
    # Of five seconds, the last second and the new 0.4 s.
    assert computed[-1] <= 19


@pytest.mark.parametrize("library", ["numpy", "mlx"])
@pytest.mark.parametrize("kernel", [1, 9])
def test_a_layer_computes_new_steps_as_it_does_among_all_of_them(kernel, library, sound):
    """In one layer, keys and values depend on their own step alone; the convolution sees a few steps that attended."""
    canary = tiny_canary(n_layers=1, conv_kernel_size=kernel)
    if library == "numpy":
        lay_out(canary)
    mel, _ = canary.features([sound])
    whole = canary.encoder(mel)
    ((_, past),) = canary.encoder.grown([mel[:, :600]], [None], [60])
    ((vectors, later),) = canary.encoder.grown([mel], [past], [120])
    steps = subsampled(mel.shape[1])
    assert vectors.shape[1] == steps - 60
    reach = kernel // 2
    assert difference(vectors[:, reach:], whole[:, 60 + reach :]) < 2e-5
    assert (later.steps, later.layers[0].kv.shape[2], later.layers[0].gated.shape[1]) == (120, 120, reach)


@pytest.mark.parametrize("library", ["numpy", "mlx"])
def test_the_convolution_of_new_steps_begins_with_the_kept_ones(library, sound):
    """Without attention, settled steps are final."""
    canary = tiny_canary()
    for layer in canary.encoder.layers:
        layer.self_attn.linear_out.weight *= 0
    if library == "numpy":
        lay_out(canary)
    mel, _ = canary.features([sound])
    whole = canary.encoder(mel)
    past, parts = None, []
    for frames, settled in ((600, 60), (640, 64), (641, 64), (760, 80), (mel.shape[1], 120)):
        steps = past.steps if past else 0
        ((vectors, past),) = canary.encoder.grown([mel[:, :frames]], [past], [settled])
        parts.append(np.array(vectors[:, : settled - steps]))
    parts.append(np.array(vectors[:, settled - steps :]))
    assert difference(np.concatenate(parts, axis=1), whole) < 2e-5


def test_the_same_past_can_be_gone_on_from_again(canary, sound):
    first = growing_encoding(canary, sound[: 3 * RATE])
    louder = np.concatenate([sound[: 3 * RATE], 0.5 * np.ones(RATE // 2, np.float32)])
    once = growing_encoding(canary, sound[: int(3.5 * RATE)], first)
    other = growing_encoding(canary, louder, first)
    again = growing_encoding(canary, sound[: int(3.5 * RATE)], first)
    assert difference(once.vectors, other.vectors) > 1e-3
    assert difference(once.vectors, again.vectors) == 0


@pytest.mark.parametrize("seconds", [1.9, 4.6], ids=["shorter than what is kept", "half as long again"])
def test_audio_that_is_half_as_long_again_or_too_short_is_encoded_whole(canary, sound, seconds):
    before = growing_encoding(canary, sound[: 3 * RATE])
    window = sound[: int(seconds * RATE)]
    encoded = growing_encoding(canary, window, before)
    assert (encoded.reused, encoded.past.whole) == (0, len(encoded.vectors))
    assert difference(encoded.vectors, canary.encodings([window])[0].vectors) < 2e-5


def test_growing_audio_is_encoded_nearly_as_it_is_whole(canary, sound):
    """Random weights attend to everything everywhere, so they are further off than a trained model's."""
    encoded = None
    for seconds in np.arange(2.0, 12.0, 0.4):
        encoded = growing_encoding(canary, sound[: int(seconds * RATE)], encoded)
    (whole,) = canary.encodings([sound[: int(seconds * RATE)]])
    error, size = np.array(encoded.vectors) - np.array(whole.vectors), np.array(whole.vectors)
    assert 0 < np.sqrt(np.square(error).mean() / np.square(size).mean()) < 0.15


@pytest.mark.parametrize("library", ["numpy", "mlx"])
def test_audios_that_grow_side_by_side_are_encoded_as_each_alone(library):
    """One at its beginning, one that is encoded whole again, and two that go on from pasts of different lengths."""
    canary = tiny_canary()
    if library == "numpy":
        lay_out(canary)
    sounds = [noise(12.0, seed) for seed in range(4)]
    before = [None, *(growing_encoding(canary, sounds[i][: s * RATE]) for i, s in ((1, 2), (2, 4), (3, 9)))]
    windows = [sounds[i][: int(s * RATE)] for i, s in enumerate((0.6, 3.2, 4.4, 9.9))]
    together = canary.growing_encodings(windows, before)
    alone = [growing_encoding(canary, *each) for each in zip(windows, before, strict=True)]
    assert [each.reused > 0 for each in together] == [False, False, True, True]
    for one, other in zip(together, alone, strict=True):
        assert (one.reused, one.total_steps, one.past.steps) == (other.reused, other.total_steps, other.past.steps)
        assert difference(one.vectors, other.vectors) < 2e-5
        for mine, its in zip(one.memory, other.memory, strict=True):
            assert difference(mine, its) < 2e-5
        for mine, its in zip(one.past.layers, other.past.layers, strict=True):
            assert difference(mine.kv, its.kv) < 2e-5
            assert difference(mine.gated, its.gated) < 2e-5


def test_a_model_with_a_local_context_encodes_growing_audio_whole(sound):
    canary = tiny_canary(self_attention_model="rel_pos_local_attn", att_context_size=(6, 6))
    encoded = growing_encoding(canary, sound[: 3 * RATE])
    assert (encoded.past, encoded.memory) == (None, None)
    encoded = growing_encoding(canary, sound, encoded)
    assert difference(encoded.vectors, canary.encodings([sound])[0].vectors) < 1e-5
