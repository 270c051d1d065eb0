"""Progress on a terminal: percent and time left over all audio."""

import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Self

from tqdm import tqdm

from server.audio.decode import header_length_s


class ProgressBar:
    """Hidden unless stderr is a terminal. lengths_s: of each audio; one of unknown length counts nothing."""

    def __init__(self, lengths_s: Mapping[Hashable, float]):
        self._lengths_s = lengths_s
        self._done_s = dict.fromkeys(lengths_s, 0.0)
        self._bar = tqdm(
            total=round(sum(lengths_s.values()), 1),
            bar_format="{percentage:3.0f}% |{bar}| {desc}{elapsed}, {remaining} left",
            leave=False,
            disable=not (lengths_s and sys.stderr.isatty()),
        )

    @classmethod
    def of_files(cls, paths: list[Path]) -> Self:
        """With the lengths in the files' headers, which are read only for a bar that is shown."""
        return cls({path: file_length_s(path) if sys.stderr.isatty() else 0.0 for path in paths})

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, audio: Hashable, done_s: float, name: str) -> None:
        """done_s: how far this audio is; name: what to show beside the bar."""
        self._bar.set_description_str(f"{name} ", refresh=False)
        self._move(audio, done_s)

    def finish(self, audio: Hashable) -> None:
        self._move(audio, self._lengths_s[audio])

    def clear(self) -> None:
        """Make room for a line of output."""
        self._bar.clear()

    def _move(self, audio: Hashable, done_s: float) -> None:
        done_s = min(done_s, self._lengths_s[audio])
        self._bar.update(max(0.0, done_s - self._done_s[audio]))
        self._done_s[audio] = max(self._done_s[audio], done_s)


class CountBar:
    """For audio whose lengths are not known beforehand: how many are done. total: None if that is not known either."""

    def __init__(self, total: int | None):
        self._bar = tqdm(total=total, unit=" utterances", leave=False, disable=not sys.stderr.isatty())

    def __enter__(self) -> "CountBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, audio: Hashable, done_s: float, name: str) -> None:
        """Nothing to show before an audio is done."""

    def finish(self, audio: Hashable) -> None:
        self._bar.update()


def file_length_s(path: Path) -> float:
    """Seconds of audio according to the file's header; 0 if that is not known."""
    try:
        return header_length_s(path) or 0.0
    except OSError:
        return 0.0
