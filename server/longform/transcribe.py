"""Audio of any length: cut into pieces that suit one pass, and joined into one transcript.

Pieces are cut while the audio is being decoded, and a bounded number of them runs side by side in the engine, so memory
does not grow with the length.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from model.decoding import DecodingOptions, Detection
from model.family import ModelConfig
from model.task import AUTO, Task
from model.transcript import Segment
from server.audio.decode import Blocks
from server.engine.admission import PIECES, Admission, Turn
from server.engine.thread import Engine
from server.engine.waiting import INTERACTIVE
from server.errors import RequestError, WaitedTooLong
from server.longform.cutting import SAMPLE_RATE, Cutting, Piece, cut, whole
from server.longform.joining import Joiner
from server.longform.pieces import PieceOutcome, PieceTranscriber, Runner
from server.longform.spoken import ASSUMED, DETECTED, FROM_MODEL, FROM_TEXT, assumed, guessed, settled
from server.longform.transcription import RecordingTiming, Transcription
from server.settings import Settings
from server.text.warnings import TRUNCATED, TranscriptionWarning, language_mismatch

# Pieces of one recording that are in the engine at the same time.
AT_ONCE = PIECES
# A language other than the given one is reported if it is this probable in at least so much speech.
MISMATCH_PROBABILITY, MISMATCH_SPEECH_S = 0.95, 2.0
DETECT_EACH = Cutting(5.0, 10.0, 2.0)
"""Short pieces, so that the language seldom changes within one."""


@dataclass(frozen=True)
class Progress:
    """How far a transcription is. total_s: None while the length is unknown; segments: the new ones, in order.

    index: which recording it is about, if there are several.
    """

    done_s: float
    total_s: float | None
    segments: tuple[Segment, ...]
    index: int = 0


OnProgress = Callable[[Progress], None]


async def transcribe_recording(
    engine: Engine,
    blocks: Iterator[np.ndarray],
    task: Task,
    settings: Settings,
    options: DecodingOptions | None = None,
    *,
    priority: int = INTERACTIVE,
    on_progress: OnProgress | None = None,
    detect_each: bool = False,
    shorten_context: bool = False,
    total_s: float | None = None,
    start_by: float | None = None,
    admission: Admission | None = None,
    charged_s: float = 0.0,
) -> Transcription:
    """The transcription of `blocks`, (n,) float32 at 16 kHz, read outside the event loop and closed at the end.

    shorten_context: drop the beginning of a context that is too long instead of raising; admission: wait for a turn
    before a block is read, for a recording of about `charged_s`; for the rest see `transcribe_audio`.
    Raises TaskError and RequestError for what the model cannot do, and QueueFull, before a block is read; WaitedTooLong
    if it is later than `start_by` then; and whatever reading the blocks or running the model raises.
    """
    began = time.monotonic()
    if start_by is not None and began > start_by:
        raise WaitedTooLong
    task = with_fitting_context(task, engine, shorten_context)
    engine.check(task)
    config = engine.info.config if engine.info else None
    if options and config:
        config.check_options(options)
    given, task = task, settled(task, config) if config else task
    async with admission.turn(charged_s, start_by) if admission else nullcontext() as turn:
        waited_s = time.monotonic() - began
        sound = Blocks(turn.counted(blocks) if turn else blocks)
        try:
            done = await transcribe_audio(
                engine,
                sound,
                task,
                options,
                priority=priority,
                on_progress=_noted(admission, turn, on_progress),
                cutting=Cutting.from_settings(settings),
                loop_guard=settings.loop_guard,
                detect_each=detect_each,
                total_s=total_s,
                start_by=start_by,
                at_once=turn.pieces if turn else lambda: AT_ONCE,
            )
            if admission and turn:
                # What is silent makes no progress.
                admission.note_done(turn, done.duration)
        finally:
            await asyncio.to_thread(sound.close)
    if given.language == AUTO and task.language != AUTO:
        done = replace(done, language_source=FROM_MODEL)
    if done.language == AUTO:
        done = await asyncio.to_thread(_in_some_language, done, config)
    if sound.truncated:
        done = replace(done, truncated=True, warnings=(*done.warnings, TRUNCATED))
    timing = replace(
        done.timing,
        queue_s=waited_s + done.timing.queue_s,
        audio_decode_s=sound.decode_s,
        total_s=time.monotonic() - began,
    )
    return replace(done, timing=timing)


def _noted(admission: Admission | None, turn: Turn | None, on_progress: OnProgress | None) -> OnProgress | None:
    """`on_progress`, after noting how much of a turn is done."""
    if admission is None or turn is None:
        return on_progress

    def note(progress: Progress) -> None:
        admission.note_done(turn, progress.done_s)
        if on_progress:
            on_progress(progress)

    return note


async def transcribe_audio(
    engine: Runner,
    audio: np.ndarray | Iterable[np.ndarray],
    task: Task,
    options: DecodingOptions | None = None,
    *,
    priority: int = INTERACTIVE,
    on_progress: OnProgress | None = None,
    cutting: Cutting | None = None,
    loop_guard: bool = True,
    detect_each: bool = False,
    total_s: float | None = None,
    start_by: float | None = None,
    at_once: Callable[[], int] = lambda: AT_ONCE,
) -> Transcription:
    """The transcript of audio of any length, 16 kHz mono float32: whole, or as blocks that are read as needed.

    options: with `one_pass`, nothing is cut and nothing decoded again; cutting: by default what suits the engine's
    model; loop_guard: decode a piece that loops or misses speech again, in
    another way; detect_each: with the language "auto", detect it in every piece, not only in the first, and cut short
    pieces for that; total_s: the length if it is known, for the progress; start_by: raise WaitedTooLong if the first
    pass has not started by then, by the monotonic clock; at_once: how many pieces may run at a time.
    Raises whatever reading the blocks or a pass raises; passes under way are then cancelled.
    """
    if isinstance(audio, np.ndarray):
        total_s, audio = len(audio) / SAMPLE_RATE, [audio]
    cutting = DETECT_EACH if detect_each and task.language == AUTO else cutting or cutting_for(engine)
    detected = DETECTED if _detects_language(engine) else FROM_TEXT
    assembly = _Assembly(task, cutting.overlap_s, detect_each, detected)
    options = options or DecodingOptions()
    loop_guard = loop_guard and not options.one_pass
    transcriber = PieceTranscriber(engine, options, priority, loop_guard, detect_each, start_by)
    blocks = _counted(audio, assembly)
    pieces = whole(blocks) if options.one_pass else cut(blocks, cutting)
    running: deque[tuple[Piece, asyncio.Task[PieceOutcome]]] = deque()
    is_first, is_checked = True, task.language == AUTO
    # The next pieces need the language that the first one is found to be in.
    in_turn = task.language == AUTO and not detect_each and _detects_language(engine)

    async def take_first() -> None:
        piece, working = running[0]
        outcome = await working
        running.popleft()
        new = assembly.add(piece, outcome)
        if on_progress:
            on_progress(Progress(piece.end_s, total_s, new))

    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            check = not is_checked and _speech_s(piece) >= MISMATCH_SPEECH_S
            outcome = transcriber.outcome(piece, assembly.task, is_first, check_language=check)
            running.append((piece, asyncio.ensure_future(outcome)))
            is_first, is_checked = False, is_checked or check
            while len(running) >= at_once() or (running and in_turn and assembly.task.language == AUTO):
                await take_first()
        while running:
            await take_first()
    finally:
        for _, working in running:
            working.cancel()
        await asyncio.gather(*(working for _, working in running), return_exceptions=True)
    last = assembly.finish()
    if on_progress and last:
        on_progress(Progress(assembly.duration_s, total_s, last))
    return assembly.transcription()


def cutting_for(engine: Runner) -> Cutting:
    """Pieces as long as the engine's model transcribes well."""
    return Cutting.up_to(engine.info.config.longest_s) if engine.info else Cutting()


def _detects_language(engine: Runner) -> bool:
    return engine.info is None or engine.info.config.detects_language


@dataclass
class _Assembly:
    """One recording's transcript while its pieces come in.

    task: its language becomes the one detected in the first piece, if that was asked for and not detect_each. detected:
    where the language of a piece comes from.
    """

    task: Task
    overlap_s: float
    detect_each: bool = False
    detected: str = DETECTED
    samples: int = 0
    segments: list[Segment] = field(default_factory=list)
    uncovered: list[tuple[float, float]] = field(default_factory=list)
    warnings: list[TranscriptionWarning] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    detection: Detection | None = None
    source: str | None = None
    timing: RecordingTiming = field(default_factory=RecordingTiming)

    def __post_init__(self) -> None:
        self.joiner = Joiner(self.overlap_s)
        self._detects = self.task.language == AUTO

    @property
    def duration_s(self) -> float:
        return self.samples / SAMPLE_RATE

    def add(self, piece: Piece, outcome: PieceOutcome) -> tuple[Segment, ...]:
        """Add a piece; returns the segments that are now final."""
        if outcome.detection:
            self._take_language(piece, outcome.detection)
        if self.task.timestamps != "none":
            self.source = self.source or outcome.source
        self.timing = self.timing.plus(outcome.timing)
        self.uncovered += outcome.uncovered
        new = self.joiner.add(outcome.segments, piece.start_s, piece.end_s, piece.overlap_s)
        return self._final(new)

    def finish(self) -> tuple[Segment, ...]:
        """The segments that were held back because the next piece might have continued them."""
        return self._final(self.joiner.finish())

    def _take_language(self, piece: Piece, found: Detection) -> None:
        if not self._detects:
            if found.language != self.task.language and found.probability >= MISMATCH_PROBABILITY:
                self.warnings.append(language_mismatch(self.task.language, found.language, found.probability))
            return
        self.languages[found.language] += len(piece.waveform)
        if not self.detection:
            self.detection = found
            if not self.detect_each:
                self.task = replace(self.task, language=found.language)

    def _final(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        if self.task.timestamps == "none":
            # Word times were only needed to join pieces.
            segments = tuple(replace(segment, words=()) for segment in segments)
        self.segments += segments
        return segments

    def transcription(self) -> Transcription:
        task = self.task
        if task.language == AUTO and self.languages:
            task = replace(task, language=self.languages.most_common(1)[0][0])
        return Transcription(
            " ".join(segment.text for segment in self.segments),
            task.language,
            task.target,
            self.duration_s,
            tuple(self.segments),
            self.source,
            self.detected if self.detection else ASSUMED,
            self.detection,
            self.timing,
            tuple(self.uncovered),
            warnings=tuple(self.warnings),
        )


def _counted(blocks: Iterable[np.ndarray], assembly: _Assembly) -> Iterable[np.ndarray]:
    for block in blocks:
        assembly.samples += len(block)
        yield block


def _speech_s(piece: Piece) -> float:
    """Seconds of speech in a piece; all of it counts where the VAD has not run."""
    return piece.end_s - piece.start_s if piece.speech is None else sum(end - start for start, end in piece.speech)


def with_fitting_context(task: Task, engine: Engine, shorten: bool) -> Task:
    """The task with a context that leaves room for the text. If `shorten`, keeps only the end that fits, or nothing if
    the model takes no context.

    Raises RequestError for a context that is too long.
    """
    info = engine.info
    if not task.context or not info:
        return task
    most = info.config.context_tokens
    if not most:
        return replace(task, context="") if shorten else task
    # Callers may not write special tokens.
    words = task.context.replace("<|", "< |").split()
    language = task.target if task.target in info.config.languages else info.config.languages[0]
    while (tokens := len(info.tokenizer.encode(" ".join(words), language))) > most:
        if not shorten:
            raise RequestError(f"prompt has {tokens} tokens; at most {most} are supported", "prompt")
        words = words[max(1, len(words) // 8) :]
    return replace(task, context=" ".join(words))


def _in_some_language(done: Transcription, config: ModelConfig | None) -> Transcription:
    """With the language that its text seems to be in. Without text there is no way to tell, but clients expect one."""
    found = guessed(done.text, config)
    language = found.language if found else assumed(config)
    target = language if done.target_language == AUTO else done.target_language
    source = FROM_TEXT if found else ASSUMED
    return replace(done, language=language, target_language=target, detection=found, language_source=source)
