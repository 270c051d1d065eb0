"""In bfloat16, a GPU's default, against NeMo's float32: as close as eight bits of mantissa allow."""

import mlx.core as mx
import numpy as np

from server.cli.doctor.compared import DRAWN, drawn_features
from server.cli.doctor.sounds import LENGTHS


def test_encodings_are_within_two_percent_of_nemos(case_in_16_bits):
    case = case_in_16_bits
    for frames in DRAWN:
        drawn = mx.array(drawn_features(frames, case.model.config.encoder.feat_in))[None]
        encoded = case.model.encoder(drawn, mx.array([frames]))
        theirs = case.arrays[f"encoder/{frames}"]
        assert encoded.dtype == mx.bfloat16
        assert relative_difference(encoded[0, : len(theirs)], theirs) < 0.02, f"{frames} frames"
    for name in LENGTHS:
        vectors = case.encoded[name].vectors
        assert vectors.dtype == mx.bfloat16
        assert relative_difference(vectors, case.arrays[f"encoded/{name}"]) < 0.02, name


def test_log_probabilities_are_close_to_nemos_and_nearly_always_name_the_same_token(case_in_16_bits):
    case = case_in_16_bits
    ours, theirs = [], []
    for i, told in enumerate(case.values["forced"]):
        vectors = case.encoded[told["sound"]].vectors
        ours.append(np.array(case.model.forced_log_probs([told["tokens"]], vectors[None], [len(vectors)])[0]))
        theirs.append(case.arrays[f"log_probs/{i}"])
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    assert np.abs(ours - theirs).max() < 0.25
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.9


def relative_difference(ours: mx.array, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(np.array(ours.astype(mx.float32)) - theirs) / np.linalg.norm(theirs))
