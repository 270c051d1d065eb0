"""The language of a text, guessed from its letters: for models that do not tell which language they heard."""

from collections.abc import Sequence
from functools import cache

from model.decoding import Detection, detection_from


def guessed_language(text: str, languages: Sequence[str] = ()) -> Detection | None:
    """The most probable language of `text` among `languages`, ISO 639-1; among all that it knows if there are none.

    None without a text, or if it knows none of the languages. May take half a second the first time.
    """
    if not text.strip():
        return None
    probabilities = {code: p for code, p in _identifier().rank(text) if not languages or code in languages}
    total = sum(probabilities.values())
    return detection_from({code: p / total for code, p in probabilities.items()}) if total else None


@cache
def _identifier():
    # Not at the top: it takes half a second and 100 MB, and most models need no guess.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
