"""What to do with an audio, and the prompt tokens that ask Canary for it. Formats `canary` and `canary2`."""

from dataclasses import dataclass, replace

from model.config import CanaryConfig
from model.tokenizer import BEGIN, Tokenizer

TIMESTAMPS = ("none", "segment", "word")
# A language to be found out from the sound before the prompt can be written.
AUTO = "auto"
_CONTEXT = "<|startofcontext|>"
_FALLBACK_SLOTS = {"emotion": "<|emo:undefined|>", "itn": "<|noitn|>", "diarize": "<|nodiarize|>"}


class TaskError(ValueError):
    """Something the loaded model cannot be asked for. `param` is the field at fault."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


class LanguagePairError(TaskError):
    """A translation that the model does not make."""


@dataclass(frozen=True)
class Task:
    """One request's wish. `target_language` None means the spoken one; another one means translation.

    `language` may be AUTO where the one who runs the task finds it out first.
    """

    language: str = "en"
    target_language: str | None = None
    pnc: bool = True
    timestamps: str = "none"
    context: str = ""

    @property
    def target(self) -> str:
        return self.target_language or self.language

    @property
    def is_translation(self) -> bool:
        return self.target != self.language


def check_task(task: Task, config: CanaryConfig) -> None:
    """Raises TaskError, naming the value and what is possible, if `config`'s model cannot do `task`."""
    possible = ", ".join(config.languages)
    if task.language == AUTO:
        task = replace(task, language="en" if task.target_language is None else task.target_language)
    if task.language not in config.languages:
        raise TaskError(f"language {task.language!r} is not one of {config.name}'s: {possible}", "language")
    if task.target not in config.languages:
        raise TaskError(f"target_language {task.target!r} is not one of {config.name}'s: {possible}", "target_language")
    if task.is_translation and "en" not in (task.language, task.target):
        raise LanguagePairError(
            f"{config.name} does not translate {task.language} to {task.target}: it translates from and to English",
            "target_language",
        )
    if task.timestamps not in TIMESTAMPS:
        raise TaskError(f"timestamps {task.timestamps!r} is not one of {', '.join(TIMESTAMPS)}", "timestamps")
    if task.context and config.prompt_format == "canary":
        raise TaskError(f"{config.name}'s prompt has no place for a context", "prompt")


def prompt_tokens(task: Task, config: CanaryConfig, tokenizer: Tokenizer) -> list[int]:
    """The decoder's first tokens for `task`. Raises TaskError."""
    check_task(task, config)
    source, target = f"<|{task.language}|>", f"<|{task.target}|>"
    pnc = "<|pnc|>" if task.pnc else "<|nopnc|>"
    if config.prompt_format == "canary":
        verb = "<|translate|>" if task.is_translation else "<|transcribe|>"
        return tokenizer.encode_prompt(f"{BEGIN}{source}{verb}{target}{pnc}")
    slots = _FALLBACK_SLOTS | {k: v for k, v in _default_slots(config).items() if k in _FALLBACK_SLOTS and v}
    timestamp = "<|timestamp|>" if asks_for_times(task, config) else "<|notimestamp|>"
    head = f"{BEGIN}{slots['emotion']}{source}{target}{pnc}{slots['itn']}{timestamp}{slots['diarize']}"
    if config.tokenizer.type == "bpe":
        return tokenizer.encode_prompt(f"{_CONTEXT}{task.context}{head}")
    # The context is text in the target language; only the rest is special tokens.
    context = tokenizer.encode(task.context, task.target) if task.context else []
    return [tokenizer.special_id(_CONTEXT), *context, *tokenizer.encode_prompt(head)]


def language_query_tokens(tokenizer: Tokenizer) -> list[int]:
    """A `canary2` prompt cut where the emotion and the spoken language come next: NeMo's `user_partial`."""
    return tokenizer.encode_prompt(f"{_CONTEXT}{BEGIN}")


def asks_for_times(task: Task, config: CanaryConfig) -> bool:
    """Whether the model itself writes the times of `task`: the flash models do; canary-1b-v2 would stop at once."""
    return task.timestamps != "none" and config.prompt_format == "canary2" and config.tokenizer.type == "agg"


def _default_slots(config: CanaryConfig) -> dict[str, str]:
    return next((turn.get("slots", {}) for turn in config.prompt_defaults if turn.get("role") == "user"), {})
