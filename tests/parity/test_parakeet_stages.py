"""A Parakeet's features, encoder, prediction and joint networks and CTC head against NeMo's."""

import mlx.core as mx
import numpy as np
import pytest

from model.parakeet.ctc import CTCSearch
from server.cli.doctor.compared import DRAWN, drawn_features, kept_frames
from server.cli.doctor.sounds import checksum, sound
from tests.parity.conftest import PARAKEETS, Case


def test_the_archives_have_every_head_and_what_published_encoders_differ_in(parakeet_archive):
    """One archive at a time; their names say what each is for."""
    shapes = {
        "ctc": {"kind": "ctc", "features": 80, "xscaling": True, "use_bias": True, "conv_kernel": 9},
        "rnnt": {"kind": "rnnt", "features": 80, "xscaling": True, "conv_kernel": 5, "lstm_layers": 2},
        "tdt": {"kind": "tdt", "features": 128, "xscaling": False, "use_bias": False, "lstm_layers": 2},
        "tdt_ctc": {"kind": "tdt_ctc", "lstm_layers": 1, "joint_dropout": False, "durations": [0, 1, 2, 3, 4]},
        "tdt_ctc-local": {"kind": "tdt_ctc", "local_context": 8, "conv_kernel": 5, "durations": [0, 1, 2, 4]},
        "unified": {"kind": "rnnt", "unified": True, "features": 128, "xscaling": True, "lstm_layers": 1},
    }
    assert shapes.keys() <= {path.stem for path in PARAKEETS}
    assert shapes.get(parakeet_archive.name, {}).items() <= parakeet_archive.values["shape"].items()


def test_the_sounds_are_those_nemo_heard(parakeet_case):
    for told in parakeet_case.values["sounds"]:
        assert checksum(sound(told["sound"])) == told["checksum"]


def test_the_features_are_nemos(parakeet_case, greatest_of_parakeet):
    pairs = []
    for told in parakeet_case.values["sounds"]:
        mel, lengths = parakeet_case.model.features([sound(told["sound"])])
        assert mel.shape[1] == told["mel_frames"]
        assert lengths.tolist() == [told["mel_length"]]
        pairs.append((mel[0, mx.array(kept_frames(mel.shape[1]))], parakeet_case.arrays[f"mel/{told['sound']}"]))
    assert greatest_of_parakeet("features", pairs) < 3e-4


def test_the_encoder_by_itself_is_nemos(parakeet_case, greatest_of_parakeet):
    pairs = [(alone(parakeet_case, frames), parakeet_case.arrays[f"encoder/{frames}"]) for frames in DRAWN]
    assert greatest_of_parakeet("encoder", pairs) < 1e-5


def test_rows_of_a_padded_batch_are_encoded_as_nemo_does_each(parakeet_case, greatest_of_parakeet):
    bands = parakeet_case.model.config.encoder.feat_in
    # What lies past a row's length must not count.
    batch = np.full((len(DRAWN), max(DRAWN) + 1, bands), 9.0, np.float32)
    for row, frames in zip(batch, DRAWN, strict=True):
        row[:frames] = drawn_features(frames, bands)[:frames]
    encoded = np.array(parakeet_case.model.encode(mx.array(batch), mx.array(DRAWN)))
    assert np.isfinite(encoded).all()
    theirs = [parakeet_case.arrays[f"encoder/{frames}"] for frames in DRAWN]
    pairs = [(ours[: len(one)], one) for ours, one in zip(encoded, theirs, strict=True)]
    assert greatest_of_parakeet("encoder, in a batch", pairs) < 1e-5


def test_from_sound_to_vectors_is_nemo(parakeet_case, greatest_of_parakeet):
    """Coarser: what the features' rounding, NeMo's included, becomes on its way through the encoder."""
    for told in parakeet_case.values["sounds"]:
        assert parakeet_case.encoded[told["sound"]].vectors.shape[0] == told["encoder_length"]
    pairs = [(one.vectors, parakeet_case.arrays[f"encoded/{name}"]) for name, one in parakeet_case.encoded.items()]
    assert greatest_of_parakeet("sound to vectors", pairs) < 1e-4


def test_the_joint_network_is_nemos_on_the_lattice_of_steps_and_tokens(parakeet_case, greatest_of_parakeet):
    """From NeMo's own vectors, before any softmax: tokens, the blank and durations."""
    pairs = [
        (lattice(parakeet_case, told["tokens"], told["sound"]), parakeet_case.arrays[f"joint/{told['sound']}"])
        for told in parakeet_case.values["lattices"]
    ]
    assert len(pairs) == (0 if parakeet_case.model.config.kind == "ctc" else 2)
    if pairs:
        assert greatest_of_parakeet("joint", pairs) < 1e-4


def test_the_ctc_head_is_nemos(parakeet_case, greatest_of_parakeet):
    names = [key for key in parakeet_case.arrays if key.startswith("ctc/")]
    assert len(names) == (2 if "ctc" in parakeet_case.model.config.heads else 0)
    pairs = [(ctc_log_probs(parakeet_case, name), parakeet_case.arrays[name]) for name in names]
    if pairs:
        assert greatest_of_parakeet("CTC", pairs) < 1e-4


def test_encodings_in_16_bits_are_within_two_percent_of_nemos(parakeet_in_16_bits):
    case = parakeet_in_16_bits
    for name, encoded in case.encoded.items():
        theirs = case.arrays[f"encoded/{name}"]
        assert encoded.vectors.dtype == mx.bfloat16
        ours = np.array(encoded.vectors.astype(mx.float32))
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.02, name


def test_a_transducers_own_networks_stay_in_float32_in_16_bits(parakeet_in_16_bits):
    case = parakeet_in_16_bits
    for told in case.values["lattices"]:
        logits = lattice(case, told["tokens"], told["sound"])
        assert logits.dtype == mx.float32
        np.testing.assert_allclose(np.array(logits), case.arrays[f"joint/{told['sound']}"], atol=1e-4)


@pytest.mark.parametrize("context", [(8, 8), (3, 20)])
def test_any_encoder_can_be_limited_to_a_local_context_for_one_pass(parakeet_case, context):
    """In a batch as alone, on steps further apart than the context: full attention with a band's mask."""
    parakeet = parakeet_case.model
    mel = mx.array(drawn_features(1200, parakeet.config.encoder.feat_in))[None]
    ours = np.array(parakeet.encode(mel, mx.array([1200]), context))[0, :150]
    full = np.array(parakeet.encode(mel, mx.array([1200])))[0, :150]
    wide = np.array(parakeet.encode(mel, mx.array([1200]), (149, 149)))[0, :150]
    if parakeet.config.encoder.local_context == context:
        np.testing.assert_array_equal(ours, full)
    else:
        assert np.abs(ours - full).max() > 0.1
    if parakeet.config.encoder.local_context is None:
        np.testing.assert_allclose(wide, full, atol=1e-5)


def ctc_log_probs(case: Case, name: str) -> mx.array:
    """(T', V + 1), of what NeMo's encoder made of a sound."""
    parakeet = case.model
    head = CTCSearch(parakeet.ctc, parakeet.config.vocab_size + 1, parakeet.xp)
    return head.log_probs(parakeet.xp.asarray(case.arrays[f"encoded/{name.removeprefix('ctc/')}"]))


def lattice(case: Case, tokens: list[int], name: str) -> mx.array:
    """(T', U + 1, outputs) after each of the tokens and before them."""
    prediction, joint, xp = case.model.prediction, case.model.joint, case.model.xp
    output, memory = prediction.start(1)
    outputs = [output]
    for token in tokens:
        output, memory = prediction(xp.asarray([token]), memory)
        outputs.append(output)
    frames = joint.frames(xp.asarray(case.arrays[f"encoded/{name}"]))
    return joint(frames[:, None], joint.texts(xp.concatenate(outputs))[None])


def alone(case: Case, frames: int) -> mx.array:
    """(T', D) of drawn features, as one item with the zero frame that real ones end with."""
    drawn = mx.array(drawn_features(frames, case.model.config.encoder.feat_in))[None]
    encoded = case.model.encode(drawn, mx.array([frames]))
    return encoded[0, : len(case.arrays[f"encoder/{frames}"])]
