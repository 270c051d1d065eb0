"""Which language a recording is in, and how that is known."""

from dataclasses import replace

from model.decoding import Detection
from model.family import ModelConfig
from model.task import AUTO, Task
from server.text.guessing import guessed_language

# Where a language comes from that the request leaves open.
DETECTED, FROM_TEXT, FROM_MODEL, ASSUMED = "detected", "text", "model", "default"


def settled(task: Task, config: ModelConfig) -> Task:
    """The task with the only language that the model knows, where that is left open. A target in it is no translation.

    Models that detect the language are left to do so.
    """
    if task.language != AUTO or config.detects_language or len(config.languages) != 1:
        return task
    spoken = config.languages[0]
    return replace(task, language=spoken, target_language=None if task.target_language == spoken else task.target)


def guessed(text: str, config: ModelConfig | None) -> Detection | None:
    """The language of a model's text, if the model cannot tell it from the sound."""
    if config is None or config.detects_language:
        return None
    return guessed_language(text, config.languages)


def assumed(config: ModelConfig | None) -> str:
    """The language of a recording without text: clients expect one."""
    languages = config.languages if config else ()
    return "en" if "en" in languages or not languages else languages[0]
