"""The running batch of a Parakeet: texts that are written side by side, each with the head and search it asks for."""

from model.parakeet.beam import BeamRows
from model.parakeet.ctc import CTCSearch
from model.parakeet.decoding import CTC, TimedTokens, Utterance
from model.parakeet.transducer import GreedyRows, Transducer


class RunningBatch:
    """A `model.family.RunningBatch`. Texts of a CTC head are finished when they join, and take no row."""

    def __init__(self, transducer: Transducer | None, ctc: CTCSearch | None):
        """The model's heads, None for one that it does not have."""
        self._ctc = ctc
        self._groups = [] if transducer is None else [GreedyRows(transducer), BeamRows(transducer)]

    @property
    def rows(self) -> int:
        """Rows in use: one for each text, or for each hypothesis of a beam."""
        return sum(group.rows for group in self._groups)

    def join(self, utterances: list[Utterance]) -> list[TimedTokens]:
        """Add texts; returns those that are finished already."""
        finished = [self._by_ctc(utterance) for utterance in utterances if utterance.head == CTC]
        waiting = [utterance for utterance in utterances if utterance.head != CTC]
        if waiting:
            greedy, beams = self._groups
            finished += greedy.join([utterance for utterance in waiting if utterance.beam_size == 1])
            finished += beams.join([utterance for utterance in waiting if utterance.beam_size > 1])
        return finished

    def step(self) -> list[TimedTokens]:
        """The next tokens of every row, not the same number for all; returns the texts that are finished."""
        return [written for group in self._groups for written in group.step()]

    def drop(self, key: int) -> None:
        """Free the rows of the text `key`, if it has any."""
        for group in self._groups:
            group.drop(key)

    def _by_ctc(self, utterance: Utterance) -> TimedTokens:
        assert self._ctc is not None
        return self._ctc.written(utterance.key, utterance.vectors, utterance.state).first(utterance.limit)
