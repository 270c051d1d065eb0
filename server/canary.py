"""Canary for Python users: a model by name, and audio in whatever form is at hand."""

import asyncio
import shutil
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from io import TextIOBase
from pathlib import Path
from queue import SimpleQueue
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Self, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np
from pydantic import ValidationError

from model.decoding import DecodingOptions
from model.family import Model
from model.task import Task
from model.transcript import Segment
from server.audio.decode import SAMPLE_RATE, AudioLimits, decode_blocks, header_length_s
from server.audio.samples import sample_blocks
from server.engine.info import ModelInfo
from server.engine.registry import load_model
from server.engine.thread import Engine
from server.engine.waiting import BULK
from server.errors import invalid_field
from server.longform.transcribe import AT_ONCE, OnProgress, Progress, transcribe_recording
from server.longform.transcription import Transcription
from server.settings import Settings
from server.text.languages import language_pair

# A path, a file's bytes, an open binary file, or floating-point samples, (N,) or (N, channels): at 16 kHz, or with
# their rate in Hz.
Audio = str | Path | bytes | BinaryIO | np.ndarray | tuple[np.ndarray, int]

T = TypeVar("T")


class Options(TypedDict, total=False):
    """The keyword arguments of `Canary.transcribe`."""

    pnc: bool
    timestamps: str
    context: str
    beam_size: int | None
    length_penalty: float | None
    detect_each: bool
    one_pass: bool
    head: str | None
    on_progress: OnProgress | None


# How long closing waits for each of the two threads: the engine's may be in the middle of a pass.
CLOSE_S = 10.0
_IN_MEMORY = 1 << 20


class Canary:
    """A loaded model behind the service's own engine. It works in any thread, in several at once (whose audio is then
    decoded in one batch), and inside a running event loop, which waits meanwhile.

    >>> with Canary.from_pretrained("canary-180m-flash") as canary:
    ...     print(canary.transcribe("talk.mp3", target_language="de").text)
    """

    def __init__(self, load: Callable[[], Model], settings: Settings):
        """load: makes the model; called once, in the engine's thread. Its errors are raised here."""
        self._settings = settings
        self._engine = Engine.from_settings(load, settings, max_queue=settings.max_rows * AT_ONCE)
        # As many recordings at a time as the batch has rows; the others wait for their turn.
        self._turn = asyncio.Semaphore(settings.max_rows)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        thread = threading.Thread(target=self._loop.run_forever, name="canary", daemon=True)
        # Runs once: on close(), with the last reference, or at the interpreter's exit.
        self._shut_down = weakref.finalize(self, _shut_down, self._engine, self._loop, thread)
        thread.start()
        try:
            self.info: ModelInfo = _result(self._run(lambda tell: self._engine.start()))
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, dtype: str | None = None, quantize: int | None = None, **settings: Any
    ) -> Self:
        """A known name, a Hugging Face repository, a `.nemo` file or a converted folder; downloaded and converted first
        if need be.

        dtype: "float32", "bfloat16" or "float16"; by default 16 bits on a GPU and float32 on a CPU.
        quantize: pack the large layers' weights into 8 or 4 bits when converting.
        settings: any of the service's, such as `cache`, `pass_s` or `default_language`. Those that are not given come
        from CANARY_* in the environment, as the service's do.
        Raises TypeError for an unknown setting, ValueError for an invalid one or for a folder that is not a model, and
        convert.errors.ConversionError.
        """
        supported = sorted(Settings.model_fields.keys() - {"model"})
        if unknown := settings.keys() - set(supported):
            raise TypeError(f"unknown setting {min(unknown)!r}; must be one of {', '.join(supported)}")
        given = {"model": (str(name_or_path),), "dtype": dtype, "quantize": quantize, **settings}
        try:
            chosen = Settings(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise ValueError(str(invalid_field(error))) from None
        return cls(lambda: load_model(chosen), chosen)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the model supports, ISO 639-1."""
        return self.info.config.languages

    @overload
    def transcribe(
        self,
        audio: Audio,
        language: str | None = ...,
        target_language: str | None = ...,
        **options: Unpack[Options],
    ) -> Transcription: ...

    @overload
    def transcribe(
        self,
        audio: list[Audio],
        language: str | None = ...,
        target_language: str | None = ...,
        **options: Unpack[Options],
    ) -> list[Transcription]: ...

    def transcribe(
        self,
        audio: Audio | list[Audio],
        language: str | None = None,
        target_language: str | None = None,
        *,
        pnc: bool = True,
        timestamps: str = "none",
        context: str = "",
        beam_size: int | None = None,
        length_penalty: float | None = None,
        detect_each: bool = False,
        one_pass: bool = False,
        head: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Transcription | list[Transcription]:
        """The transcription of one audio of any length, or of each in a list, in the list's order; with another
        `target_language`, the translation.

        language: of the speech; "auto" detects it. By default the setting `default_language`, normally "auto".
        pnc: punctuation and capitals. timestamps: "none", "segment" or "word". context: text that helps, such as names.
        detect_each: with the language "auto", detect it anew every few seconds. one_pass: for Parakeets, transcribe
        long audio in one pass with local attention, not in pieces. head: of a Parakeet with two, "ctc" or its
        transducer, "tdt" or "rnnt", which is the default. on_progress: called in this thread whenever segments are
        ready; in a list, `Progress.index` is the audio's place.

        Raises TaskError for what the model does not support, server.errors.RequestError for other arguments (AudioError
        for audio that cannot be read), OSError for a file that cannot be opened, server.errors.TranscriptionFailed if
        the model fails. In a list, the first failure cancels the rest.
        """
        task = Task(*self._languages(language, target_language), pnc, timestamps, context)
        request = _Request(task, DecodingOptions(beam_size, length_penalty, head=head, one_pass=one_pass), detect_each)
        if isinstance(audio, list):
            return _result(self._run(lambda tell: self._transcriptions(audio, request, tell)), on_progress)
        return _result(self._run(lambda tell: self._transcription(audio, request, tell)), on_progress)

    def segments(
        self,
        audio: Audio,
        language: str | None = None,
        target_language: str | None = None,
        *,
        pnc: bool = True,
        timestamps: str = "none",
        context: str = "",
        beam_size: int | None = None,
        length_penalty: float | None = None,
        detect_each: bool = False,
        one_pass: bool = False,
        head: str | None = None,
    ) -> Iterator[Segment]:
        """One audio's segments, each as soon as it is final. For the arguments and errors see `transcribe`.

        Work begins when the first one is asked for; closing the iterator, or dropping it, cancels the rest.
        """
        task = Task(*self._languages(language, target_language), pnc, timestamps, context)
        options = DecodingOptions(beam_size, length_penalty, head=head, one_pass=one_pass)
        return self._segments(audio, _Request(task, options, detect_each))

    def close(self) -> None:
        """Cancel running work and free the model's memory. Any other use afterwards raises RuntimeError."""
        with self._lock:
            self._shut_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _languages(self, language: str | None, target_language: str | None) -> tuple[str, str | None]:
        return language_pair(language, target_language, self._settings.default_language)

    def _segments(self, audio: Audio, request: "_Request") -> Iterator[Segment]:
        with closing(self._run(lambda tell: self._transcription(audio, request, tell))) as run:
            for progress in run:
                yield from progress.segments

    # ---- on the event loop ----

    async def _transcriptions(self, audios: list[Audio], request: "_Request", tell: OnProgress) -> list[Transcription]:
        async def one(index: int, audio: Audio) -> Transcription:
            try:
                return await self._transcription(audio, request, tell, index)
            except Exception as error:
                error.add_note(f"audio {index} of the list")
                raise

        works = [asyncio.ensure_future(one(index, audio)) for index, audio in enumerate(audios)]
        try:
            return await asyncio.gather(*works)
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    async def _transcription(
        self, audio: Audio, request: "_Request", tell: OnProgress, index: int = 0
    ) -> Transcription:
        async with self._turn:
            return await transcribe_recording(
                self._engine,
                _blocks(audio, AudioLimits.from_settings(self._settings)),
                request.task,
                self._settings,
                request.options,
                priority=BULK,
                on_progress=lambda progress: tell(replace(progress, index=index)),
                detect_each=request.detect_each,
                total_s=await asyncio.to_thread(_length_s, audio),
            )

    # ---- between the caller's thread and the loop ----

    def _run(self, work: Callable[[OnProgress], Coroutine[Any, Any, T]]) -> Generator[Progress, None, T]:
        """Run `work` on the event loop. Yields its progress and returns its result.

        Closing the generator cancels the work and waits until that is done.
        """
        updates: SimpleQueue[Progress | asyncio.Task[T]] = SimpleQueue()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(work(updates.put)))
            tasks[0].add_done_callback(updates.put)

        with self._lock:
            if not self._shut_down.alive:
                raise RuntimeError("This Canary is closed.")
            self._loop.call_soon_threadsafe(begin)
        try:
            while isinstance(item := updates.get(), Progress):
                yield item
        except BaseException:
            # If the loop was closed meanwhile, its tasks are cancelled already.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            while isinstance(updates.get(), Progress):
                pass
            raise
        if item.cancelled():
            raise RuntimeError("This Canary was closed before its work was done.")
        return item.result()


@dataclass(frozen=True)
class _Request:
    """What to do with each audio."""

    task: Task
    options: DecodingOptions
    detect_each: bool


def _result(run: Generator[Progress, None, T], on_progress: OnProgress | None = None) -> T:
    """The result of `Canary._run`, whose progress goes to `on_progress`."""
    with closing(run):
        while True:
            try:
                progress = next(run)
            except StopIteration as end:
                return end.value
            if on_progress:
                on_progress(progress)


def _blocks(audio: Audio, limits: AudioLimits) -> Iterator[np.ndarray]:
    """Any form of audio as blocks (n,) float32 at 16 kHz. Raises TypeError for anything else."""
    match audio:
        case str() | Path():
            return decode_blocks(Path(audio), limits)
        case bytes():
            return decode_blocks(audio, limits)
        case np.ndarray():
            return sample_blocks(audio, SAMPLE_RATE, limits)
        case (np.ndarray() as samples, int() | float() as rate):
            return sample_blocks(samples, rate, limits)
    if isinstance(audio, tuple | TextIOBase) or not hasattr(audio, "read"):
        raise TypeError(
            "audio must be a path, bytes, a file opened in binary mode, a float array or (array, sample rate), "
            f"not {type(audio).__name__}"
        )
    return decode_blocks(audio, limits) if audio.seekable() else _copied_blocks(audio, limits)


def _copied_blocks(file: BinaryIO, limits: AudioLimits) -> Iterator[np.ndarray]:
    """The blocks of a pipe or an HTTP response: decoders need a file that they can seek in."""
    with SpooledTemporaryFile(_IN_MEMORY) as copy:
        shutil.copyfileobj(file, copy)
        yield from decode_blocks(cast(BinaryIO, copy), limits)


def _length_s(audio: Audio) -> float | None:
    """The length in seconds, if it is known before decoding."""
    match audio:
        case np.ndarray():
            return len(audio) / SAMPLE_RATE
        case (samples, rate):
            return len(samples) / rate if rate else None
        case str():
            return header_length_s(Path(audio))
        case Path() | bytes():
            return header_length_s(audio)
    return header_length_s(audio) if audio.seekable() else None


def _shut_down(engine: Engine, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Cancel the loop's tasks, then stop the loop and the engine."""

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # One more turn for the callbacks of a task that was done just before: its caller waits for them.
        await asyncio.sleep(0)
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    # The last reference may be dropped in the loop's own thread, which cannot wait for itself.
    if threading.current_thread() is not thread:
        thread.join(CLOSE_S)
    engine.close(CLOSE_S)
    if not loop.is_running():
        loop.close()
