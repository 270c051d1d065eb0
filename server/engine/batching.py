"""Passes through the model: encoded when they join, decoded side by side in one running batch.

Knows the model; knows no threads, no queue, no requests. Everything here happens in the thread that loaded the model.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from model.config import SAMPLE_RATE
from model.decoding import Detection, Encoded, Generated
from model.device_errors import DeviceError, is_device_failure
from model.family import Model
from model.task import AUTO, Task
from server.engine.passes import Look, Pass, PassResult, Piece, Timing

# Limits of what is encoded together: seconds with padding, if there is any, and their ratio to seconds without.
MAX_PADDED_S = 160.0
MAX_PADDING = 1.25
# What a device that works can always encode: a second.
SILENCE = np.zeros(SAMPLE_RATE, np.float32)


@dataclass
class _Running:
    """A pass in the batch. keys: those of its utterances, one for each task; of a piece, one after the other."""

    ticket: int
    wanted: Pass
    tasks: list[Task]
    encoded: Encoded
    detection: Detection | None
    joined_at: float
    keys: list[int] = field(default_factory=list)
    done: dict[int, Generated] = field(default_factory=dict)


PassOutcome = PassResult | Exception
# Called before each piece of work with its kind and size; see `watchdog.Heartbeat.beat`.
Beat = Callable[[str, float], None]


class Batcher:
    """`join` passes at any time, then `step` until nothing runs.

    A pass that fails has the error as its outcome. If the device fails, `join` and `step` raise DeviceError, and the
    passes have no outcomes.
    """

    def __init__(
        self,
        model: Model,
        max_rows: int,
        beat: Beat = lambda kind, size: None,
        between_layers: Callable[["Batcher"], None] = lambda batcher: None,
    ):
        """between_layers: called while audio that does not grow is encoded. It may join passes that do, and step."""
        self._model = model
        self._max_rows = max_rows
        self._beat = beat
        self._between_layers = between_layers
        self._batch = model.running_batch()
        # In looks, instead of the model, which they would keep in memory.
        self._identity = object()
        self._running: dict[int, _Running] = {}
        self._owner: dict[int, int] = {}
        self._keys = 0

    @property
    def rows(self) -> int:
        """Decoder rows in use."""
        return self._batch.rows

    @property
    def running(self) -> Collection[int]:
        """The tickets of the passes in the batch."""
        return self._running.keys()

    def has_room_for(self, wanted: Pass, beside: Sequence[Pass] = ()) -> bool:
        """Whether it can join now, encoded together with `beside`. A pass wider than the whole batch may run alone.

        Looks at growing audio are encoded together, without padding. Models that encode in batches take other passes of
        similar length together, too. Others take one at a time, with a step between.
        """
        rows = self.rows + sum(each.rows for each in beside)
        if rows and rows + wanted.rows > self._max_rows:
            return False
        if not beside:
            return True
        together = [*beside, wanted]
        lengths = [each.length_s for each in together]
        if any(each.grows for each in together):
            return all(each.grows for each in together) and sum(lengths) <= MAX_PADDED_S
        if not self._model.encodes_together or any(each.options.one_pass for each in together):
            return False
        padded = max(lengths) * len(lengths)
        return padded <= MAX_PADDED_S and padded <= MAX_PADDING * sum(lengths)

    def join(self, passes: Sequence[tuple[int, Pass]]) -> list[tuple[int, PassOutcome]]:
        """Encode passes, each with a ticket, and start them; returns those that are finished already, or failed."""
        utterances = []
        outcomes: list[tuple[int, PassOutcome]] = []
        for ticket, wanted, encoded in self._encoded(passes):
            if isinstance(encoded, Exception):
                outcomes.append((ticket, encoded))
                continue
            self._beat("prefill", wanted.rows)
            try:
                run, its_utterances = self._begun(ticket, wanted, encoded)
            except Exception as error:
                outcomes.append((ticket, self._error_of_one(error)))
                continue
            utterances += its_utterances
            self._running[ticket] = run
            self._owner |= dict.fromkeys(run.keys, ticket)
        if utterances:
            self._beat("prefill", len(utterances))
            try:
                outcomes += self._retired(self._batch.join(utterances))
            except Exception as error:
                outcomes += self._retry_one_by_one(error)
        return outcomes

    def step(self) -> list[tuple[int, PassOutcome]]:
        """One token for every row; returns the passes that it finished."""
        self._beat("step", self.rows)
        try:
            return self._retired(self._batch.step())
        except Exception as error:
            return self._retry_one_by_one(error)

    def cancel(self, ticket: int) -> None:
        """Free a pass's rows at once. It has no outcome."""
        if run := self._running.pop(ticket, None):
            for key in run.keys:
                self._batch.drop(key)
                self._owner.pop(key, None)

    def _encoded(self, passes: Sequence[tuple[int, Pass]]) -> list[tuple[int, Pass, Encoded | Exception]]:
        """Each pass with its encoding. If encoding them together fails, each alone, to find the one at fault."""
        if not passes:
            return []
        length_s = len(passes) * max(wanted.length_s for _, wanted in passes)

        def between_layers() -> None:
            self._between_layers(self)
            self._beat("encode", length_s)

        self._beat("encode", length_s)
        try:
            only = passes[0][1] if len(passes) == 1 else None
            if only and only.options.one_pass:
                encodings = [self._model.long_encoding(only.waveform, between_layers)]
            elif passes[0][1].grows:
                looks = [self._own(wanted.look) for _, wanted in passes]
                waveforms = [wanted.waveform for _, wanted in passes]
                encodings = self._model.growing_encodings(waveforms, [look and look.encoded for look in looks])
            else:
                waveforms = [self._to_encode(wanted) for _, wanted in passes]
                encodings = self._model.encodings(waveforms, between_layers)
        except Exception as error:
            if len(passes) == 1:
                return [(*passes[0], self._error_of_one(error))]
            _raise_device_failure(error)
            return [each for one in passes for each in self._encoded([one])]
        return [(*one, encoded) for one, encoded in zip(passes, encodings, strict=True)]

    def _own(self, look: Look | None) -> Look | None:
        """`look`, unless it comes from a model that was loaded earlier."""
        return look if look and look.of is self._identity else None

    def _to_encode(self, wanted: Pass) -> np.ndarray:
        if wanted.piece is None:
            return wanted.waveform
        return wanted.waveform[round(wanted.piece.context * self._model.config.step_s * SAMPLE_RATE) :]

    def _begun(self, ticket: int, wanted: Pass, encoded: Encoded) -> tuple[_Running, list[Any]]:
        """The pass and its utterances, one for each task."""
        began = time.monotonic()
        detect = wanted.detect_language or any(task.language == AUTO for task in wanted.tasks)
        detects = detect and self._model.config.detects_language
        detection = self._model.detect_language(encoded) if detects else None
        tasks = [
            replace(t, language=detection.language) if detection and t.language == AUTO else t for t in wanted.tasks
        ]
        run = _Running(ticket, wanted, tasks, encoded, detection, began)
        if wanted.piece:
            return run, [self._next_of_piece(run, wanted.piece)]
        utterances = []
        look = self._own(wanted.look)
        nothing: tuple[tuple[int, ...], ...] = ((),) * len(tasks)
        for task, prefix, draft in zip(tasks, wanted.prefixes or nothing, wanted.drafts or nothing, strict=True):
            self._keys += 1
            run.keys.append(self._keys)
            before = look.texts.get(task) if look else None
            utterances.append(
                self._model.utterance(
                    self._keys, encoded, task, wanted.options, prefix, wanted.attention, before, draft
                )
            )
        return run, utterances

    def _next_of_piece(self, run: _Running, piece: Piece) -> Any:
        """The utterance of a piece's certain steps, or of the provisional ones once those are decoded."""
        begin, end, before = piece.begin, piece.end, piece.before
        state = before.state if before else None
        if run.done and end is not None:
            begin, end, state = end, None, run.done[run.keys[0]].state
        vectors = run.encoded.vectors[begin - piece.context : None if end is None else end - piece.context]
        self._keys += 1
        run.keys.append(self._keys)
        return self._model.piece(self._keys, vectors, state, run.wanted.options.head)

    def _retired(self, finished: Sequence[Generated]) -> list[tuple[int, PassOutcome]]:
        """The passes whose texts are all written."""
        outcomes: list[tuple[int, PassOutcome]] = []
        provisional = []
        for generated in finished:
            run = self._running[self._owner.pop(generated.key)]
            run.done[generated.key] = generated
            piece = run.wanted.piece
            if piece and piece.end is not None and len(run.done) == 1:
                provisional.append(self._next_of_piece(run, piece))
                self._owner[run.keys[-1]] = run.ticket
            elif len(run.done) == len(run.keys):
                del self._running[run.ticket]
                self._beat("finish", run.wanted.length_s)
                try:
                    outcomes.append((run.ticket, self._result(run)))
                except Exception as error:
                    outcomes.append((run.ticket, self._error_of_one(error)))
        if provisional:
            try:
                outcomes += self._retired(self._batch.join(provisional))
            except Exception as error:
                outcomes += self._retry_one_by_one(error)
        return outcomes

    def _result(self, run: _Running) -> PassResult:
        if run.wanted.piece:
            return self._result_of_piece(run, run.wanted.piece)
        generated = tuple(run.done[key] for key in run.keys)
        whole = [
            replace(g, tokens=list(prefix) + g.tokens)
            for g, prefix in zip(generated, run.wanted.prefixes or ((),) * len(generated), strict=True)
        ]
        transcripts = tuple(
            self._model.transcript(g, run.wanted.waveform, t, run.encoded)
            for g, t in zip(whole, run.tasks, strict=True)
        )
        attention: tuple[np.ndarray, ...] = ()
        if run.wanted.attention:
            # A beam has none of its own.
            attention = tuple(
                self._model.attention(run.encoded, task, w.tokens)[len(w.tokens) - len(g.tokens) :]
                if g.attention is None
                else g.attention
                for task, w, g in zip(run.tasks, whole, generated, strict=True)
            )
        look = None
        if run.wanted.grows:
            texts = {task: g.memory for task, g in zip(run.tasks, generated, strict=True)}
            look = Look(self._identity, run.encoded, texts)
        return PassResult(transcripts, generated, attention, run.detection, self._timing(run), look)

    def _result_of_piece(self, run: _Running, piece: Piece) -> PassResult:
        certain, *provisional = (run.done[key] for key in run.keys)
        so_far = piece.before.followed_by(certain) if piece.before else certain
        transcript = self._model.transcript(so_far, run.wanted.waveform, run.tasks[0], run.encoded)
        return PassResult((transcript,), (so_far, *provisional), (), run.detection, self._timing(run))

    def _timing(self, run: _Running) -> Timing:
        decode_s = time.monotonic() - run.joined_at
        return Timing(features_s=run.encoded.features_s, encode_s=run.encoded.encode_s, decode_s=decode_s)

    def _retry_one_by_one(self, error: Exception) -> list[tuple[int, PassOutcome]]:
        """A step failed, and with it every row. Run each pass again by itself, so that one cannot fail the others."""
        _raise_device_failure(error)
        fallen, self._running, self._owner = list(self._running.values()), {}, {}
        self._batch = self._model.running_batch()
        if len(fallen) == 1:
            return [(fallen[0].ticket, self._error_of_one(error))]
        outcomes: list[tuple[int, PassOutcome]] = []
        for run in fallen:
            outcomes += self.join([(run.ticket, run.wanted)])
            while self._batch.rows:
                outcomes += self.step()
        if outcomes and all(isinstance(outcome, RuntimeError | MemoryError) for _, outcome in outcomes):
            raise DeviceError(f"each of {len(fallen)} passes failed by itself too: {error}") from error
        return outcomes

    def _error_of_one(self, error: Exception) -> Exception:
        """The error of a pass that ran alone. Raises DeviceError if even silence fails: then the device is at fault."""
        _raise_device_failure(error)
        if isinstance(error, RuntimeError | MemoryError):
            self._beat("encode", len(SILENCE) / SAMPLE_RATE)
            try:
                self._model.encodings([SILENCE])
            except Exception as again:
                raise DeviceError(f"{error}; and on silence: {again}") from error
        return error


def _raise_device_failure(error: Exception) -> None:
    """Raises DeviceError if `error` is one, or its message says that the device failed."""
    if isinstance(error, DeviceError):
        raise error
    if is_device_failure(error):
        raise DeviceError(str(error)) from error
