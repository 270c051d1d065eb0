"""The prompt tokens that ask Canary for a task: NeMo's formats `canary` (canary-1b) and `canary2` (all others)."""

from model.canary.config import CanaryConfig
from model.task import Task
from model.tokenizer import PAD, Tokenizer

BEGIN = "<|startoftranscript|>"
END = "<|endoftext|>"
REQUIRED_TOKENS = (BEGIN, END, PAD)
NO_SPEECH = "<|nospeech|>"

_CONTEXT = "<|startofcontext|>"
_FALLBACK_SLOTS = {"emotion": "<|emo:undefined|>", "itn": "<|noitn|>", "diarize": "<|nodiarize|>"}


def prompt_tokens(task: Task, config: CanaryConfig, tokenizer: Tokenizer) -> list[int]:
    """The decoder's first tokens for `task`. Raises TaskError."""
    config.check(task)
    source, target = f"<|{task.language}|>", f"<|{task.target}|>"
    pnc = "<|pnc|>" if task.pnc else "<|nopnc|>"
    if config.prompt_format == "canary":
        verb = "<|translate|>" if task.is_translation else "<|transcribe|>"
        return tokenizer.encode_prompt(f"{BEGIN}{source}{verb}{target}{pnc}")
    slots = _FALLBACK_SLOTS | {k: v for k, v in _default_slots(config).items() if k in _FALLBACK_SLOTS and v}
    timestamp = "<|timestamp|>" if config.writes_times and task.timestamps != "none" else "<|notimestamp|>"
    head = f"{BEGIN}{slots['emotion']}{source}{target}{pnc}{slots['itn']}{timestamp}{slots['diarize']}"
    if config.tokenizer.type == "bpe":
        return tokenizer.encode_prompt(f"{_CONTEXT}{task.context}{head}")
    # The context is text in the target language; only the rest is special tokens.
    context = tokenizer.encode(task.context, task.target) if task.context else []
    return [tokenizer.special_id(_CONTEXT), *context, *tokenizer.encode_prompt(head)]


def language_query_tokens(tokenizer: Tokenizer) -> list[int]:
    """A `canary2` prompt cut where the emotion and the spoken language come next: NeMo's `user_partial`."""
    return tokenizer.encode_prompt(f"{_CONTEXT}{BEGIN}")


def _default_slots(config: CanaryConfig) -> dict[str, str]:
    return next((turn.get("slots", {}) for turn in config.prompt_defaults if turn.get("role") == "user"), {})
