"""Features, encoder and log-probabilities against NeMo's, in float32."""

import json

import mlx.core as mx
import numpy as np

from server.cli.doctor.compared import DRAWN, GOLDENS, drawn_features, kept_frames
from server.cli.doctor.sounds import checksum, sound


def test_the_sounds_are_those_nemo_heard(case):
    for told in case.values["sounds"]:
        waveform = sound(told["sound"])
        assert len(waveform) == told["samples"]
        assert checksum(waveform) == told["checksum"]


def test_some_archives_have_the_widths_that_a_gpus_fast_kernels_ask_for():
    told = [json.loads(path.read_text(encoding="utf-8")) for path in GOLDENS.glob("*.json")]
    shapes = [one["shape"] for one in told]
    assert {64, 128} <= {shape["d_model"] // shape["encoder_heads"] for shape in shapes}
    assert {64, 128} <= {shape["hidden"] // shape["decoder_heads"] for shape in shapes}
    assert 256 in {shape["conv_channels"] for shape in shapes}
    assert {9, 10} <= {len(prompt["ids"]) for one in told for prompt in one["prompts"]}


def test_the_features_are_nemos(case, greatest):
    pairs = []
    for told in case.values["sounds"]:
        mel, lengths = case.model.features([sound(told["sound"])])
        assert mel.shape[1] == told["mel_frames"]
        assert lengths.tolist() == [told["mel_length"]]
        pairs.append((mel[0, mx.array(kept_frames(mel.shape[1]))], case.arrays[f"mel/{told['sound']}"]))
    assert greatest("features", pairs) < 3e-4


def test_the_encoder_by_itself_is_nemos(case, greatest):
    pairs = [(alone(case, frames), case.arrays[f"encoder/{frames}"]) for frames in DRAWN]
    assert greatest("encoder", pairs) < 1e-5


def test_the_encoder_and_its_projection_are_nemos(case, greatest):
    pairs = []
    for frames in DRAWN:
        encoded = case.model.encode(mx.array(drawn(case, frames))[None], mx.array([frames]))
        # Archives without a projection hand the encoder's own vectors on.
        theirs = case.arrays.get(f"projected/{frames}", case.arrays[f"encoder/{frames}"])
        pairs.append((encoded[0, : len(theirs)], theirs))
    assert greatest("encoder, projected", pairs) < 1e-5


def test_rows_of_a_padded_batch_are_encoded_as_nemo_does_each(case, greatest):
    batch = np.zeros((len(DRAWN), max(DRAWN) + 1, case.model.config.encoder.feat_in), np.float32)
    for row, frames in zip(batch, DRAWN, strict=True):
        row[: frames + 1] = drawn(case, frames)
        # What lies past a row's length must not count.
        row[frames:] = 9.0
    encoded = case.model.encoder(mx.array(batch), mx.array(DRAWN))
    theirs = [case.arrays[f"encoder/{frames}"] for frames in DRAWN]
    pairs = [(ours[: len(one)], one) for ours, one in zip(encoded, theirs, strict=True)]
    assert greatest("encoder, in a batch", pairs) < 1e-5


def test_from_sound_to_the_decoders_door_is_nemo(case, greatest):
    """Coarser: what the features' rounding, NeMo's included, becomes on its way through the encoder."""
    pairs = [(encoded.vectors, case.arrays[f"encoded/{name}"]) for name, encoded in case.encoded.items()]
    assert greatest("sound to vectors", pairs) < 1e-4


def test_the_length_limit_counts_nemos_encoder_steps(case):
    for told in case.values["sounds"]:
        assert case.encoded[told["sound"]].total_steps == told["encoder_frames"]


def test_the_log_probabilities_of_given_tokens_are_nemos(case, greatest):
    pairs = []
    for i, told in enumerate(case.values["forced"]):
        vectors = case.encoded[told["sound"]].vectors
        log_probs = case.model.forced_log_probs([told["tokens"]], vectors[None], [len(vectors)])
        pairs.append((log_probs[0], case.arrays[f"log_probs/{i}"]))
    assert greatest("log-probabilities", pairs) < 1e-4


def drawn(case, frames: int) -> np.ndarray:
    return drawn_features(frames, case.model.config.encoder.feat_in)


def alone(case, frames: int) -> mx.array:
    """(T', D) of drawn features, as one item with the zero frame that real ones end with."""
    encoded = case.model.encoder(mx.array(drawn(case, frames))[None], mx.array([frames]))
    return encoded[0, : len(case.arrays[f"encoder/{frames}"])]
