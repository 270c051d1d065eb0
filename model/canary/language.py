"""Which language is spoken, asked of the model itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """The most probable language, and the others' chances; probabilities are over the model's languages."""

    language: str
    probability: float
    runner_up: str | None
    probabilities: dict[str, float]


def detection_from(probabilities: dict[str, float]) -> Detection:
    """The winner and the runner-up of `probabilities`, which sum to 1."""
    ranked = sorted(probabilities, key=lambda language: -probabilities[language])
    return Detection(ranked[0], probabilities[ranked[0]], ranked[1] if len(ranked) > 1 else None, probabilities)
