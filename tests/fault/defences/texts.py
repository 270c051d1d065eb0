"""Words that would be lost or repeated, and texts that would depend on what else is transcribed."""

from tests.fault.defences.defence import Defence, defence

TEXTS: dict[str, tuple[Defence, ...]] = {
    "words twice where pieces meet, and loops": (
        defence(
            "words of an overlap are merged",
            "server/longform/joining.py",
            "unit/test_joining.py::test_merging_keeps_every_word_once_wherever_the_cuts_are",
            "[j >= skip for j in range(len(right_words))]",
            "[True for j in range(len(right_words))]",
        ),
        defence(
            "a text that loops is decoded again",
            "server/longform/pieces.py",
            "unit/test_longform.py::test_a_loop_is_decoded_again_with_a_wider_search_and_then_in_halves",
            "if self.loop_guard and is_loop(outcome.text):",
            "if False:",
        ),
    ),
    "a language that nobody gave": (
        defence(
            "it is detected",
            "server/settings.py",
            "api/test_native.py::test_a_language_that_was_not_given_is_found_out_and_said_to_be",
            '    default_language: str = _models(\n        "auto"',
            '    default_language: str = _models(\n        "en"',
        ),
    ),
    "audio longer than the model takes": (
        defence(
            "long audio is cut into pieces",
            "server/longform/cutting.py",
            "unit/test_cutting.py::test_without_pauses_pieces_have_about_the_longest_length_and_overlap",
            "self._longest = int(cutting.longest_s * SAMPLE_RATE)",
            "self._longest = int(3600 * SAMPLE_RATE)",
        ),
    ),
    "a batch that changes its members": (
        defence(
            "padding is masked",
            "model/encoder.py",
            "unit/test_equivalences.py::test_encodings_of_a_padded_batch_are_those_of_each_sound_alone",
            "bias = xp.where(mask, bias, -math.inf)",
            "pass",
        ),
        defence(
            "padding is masked for the decoder, too",
            "model/canary/reading.py",
            "unit/test_equivalences.py::test_a_padded_batch_of_eight_mixed_requests_gives_the_tokens_of_eight_single_ones",
            "return xp.stack(rows), lengths",
            "return xp.stack(rows), [T] * len(rows)",
        ),
    ),
}
