"""The timestamps model within canary-1b-v2's archives against NeMo's."""

import numpy as np

from server.cli.doctor.sounds import sound


def test_an_archive_without_a_timestamps_model_loads_without_an_aligner(case):
    assert (case.model._aligner is not None) == ("alignments" in case.values)


def test_the_aligners_log_probabilities_are_nemos(case):
    for name in [key for key in case.arrays if key.startswith("aligner/")]:
        ours = case.model._aligner().log_probs(sound(name.removeprefix("aligner/")))
        np.testing.assert_allclose(ours, case.arrays[name], atol=1e-4)


def test_words_have_the_times_nemo_gives_them(case):
    for told in case.values.get("alignments", []):
        times = case.model._aligner().word_times(sound(told["sound"]), told["text"])
        # NeMo gives none to a text of more tokens than the sound has steps.
        assert times == ([(start, end) for _, start, end in told["words"]] or None)
