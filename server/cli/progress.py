"""Progress of `canary transcribe` on a terminal: percent and time left over all files."""

import sys
from pathlib import Path

from tqdm import tqdm

from server.audio.decode import header_length_s


class ProgressBar:
    """Hidden unless stderr is a terminal. Files whose header gives no length are not counted."""

    def __init__(self, paths: list[Path]):
        self._lengths_s = {path: _length_s(path) for path in paths} if sys.stderr.isatty() else {}
        self._done_s = dict.fromkeys(paths, 0.0)
        self._bar = tqdm(
            total=round(sum(self._lengths_s.values()), 1),
            bar_format="{percentage:3.0f}% |{bar}| {desc}{elapsed}, {remaining} left",
            leave=False,
            disable=not self._lengths_s,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, path: Path, done_s: float) -> None:
        self._bar.set_description_str(f"{path.name} ", refresh=False)
        self._move(path, done_s)

    def finish(self, path: Path) -> None:
        self._move(path, self._lengths_s.get(path, 0.0))

    def clear(self) -> None:
        """Make room for a line of output."""
        self._bar.clear()

    def _move(self, path: Path, done_s: float) -> None:
        done_s = min(done_s, self._lengths_s.get(path, 0.0))
        self._bar.update(max(0.0, done_s - self._done_s[path]))
        self._done_s[path] = max(self._done_s[path], done_s)


def _length_s(path: Path) -> float:
    try:
        return header_length_s(path) or 0.0
    except OSError:
        return 0.0
