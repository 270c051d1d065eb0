"""Which tasks a Canary accepts, and what it says of the others."""

import pytest

from model.task import LanguagePairError, Task, TaskError
from tests.configs import canary_config

BOTH = canary_config(languages=("en", "de", "fr"))
WITHOUT_ENGLISH = canary_config(languages=("de", "fr"))


@pytest.mark.parametrize("config", [BOTH, WITHOUT_ENGLISH], ids=["with English", "without"])
@pytest.mark.parametrize("target", [None, "de"])
def test_a_language_may_be_detected_whether_the_model_knows_english_or_not(config, target):
    config.check(Task("auto", target))


@pytest.mark.parametrize(
    ("task", "kind", "param", "message"),
    [
        (Task("en"), TaskError, "language", "language 'en' is not supported by mock; must be one of de, fr"),
        (Task("auto", "en"), TaskError, "target_language", "target_language 'en' is not supported by mock"),
        (Task("de", "en"), TaskError, "target_language", "target_language 'en' is not supported by mock"),
        (Task("de", "fr"), LanguagePairError, "target_language", "mock does not translate de to fr"),
        (Task("de", timestamps="syllable"), TaskError, "timestamps", "timestamps 'syllable' is not supported"),
    ],
)
def test_a_task_that_the_model_cannot_do_is_an_error_that_names_the_field(task, kind, param, message):
    with pytest.raises(kind, match=message) as error:
        WITHOUT_ENGLISH.check(task)
    assert error.value.param == param
