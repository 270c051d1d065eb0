"""When each word was spoken, from the decoder's cross-attention: for models that write no times.

Attention is coarse: a step is 80 ms, and the end of a word gets hardly any. So each boundary between two words is then
moved to the nearest pause in the audio, if one is close.
"""

import numpy as np

from model.config import SAMPLE_RATE
from model.timestamps import WordTokens

_FRAME_S = 0.01
_FRAME = int(_FRAME_S * SAMPLE_RATE)
# How far a boundary may move, in seconds.
REACH_S = 0.16
# How loud a pause may be, from 0 (noise floor) to 1 (loud speech).
QUIET = 0.04


def attention_times(
    attention: np.ndarray, words: list[WordTokens], waveform: np.ndarray, step_s: float, early_s: float = 0.0
) -> list[tuple[float, float]]:
    """(start, end) in seconds of each word.

    attention: (tokens, steps), rows summing to 1; step_s: seconds of a step; early_s: the padding before the waveform
    that the encoder saw, in seconds.
    """
    first, last = monotonic_path(attention)
    edges = [first[w.tokens.start] for w in words] + [last[words[-1].tokens.stop - 1] + 1]
    *starts, end = np.clip(np.array(edges) * step_s - early_s, 0.0, len(waveform) / SAMPLE_RATE).tolist()
    return _moved_to_pauses(starts, end, quiet_frames(waveform))


def monotonic_path(attention: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, T) → the first and the last step (S,) of each row, on the path of most attention that never goes back."""
    S, T = attention.shape
    cost = np.full((S + 1, T + 1), np.inf)
    cost[0, 0] = 0
    came = np.zeros((S + 1, T + 1), np.int8)
    # Cells of a diagonal depend only on earlier diagonals, so each diagonal is computed at once.
    for d in range(2, S + T + 1):
        i = np.arange(max(1, d - T), min(S, d - 1) + 1)
        j = d - i
        before = np.stack([cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1]])
        came[i, j] = before.argmin(axis=0)
        cost[i, j] = before.min(axis=0) - attention[i - 1, j - 1]
    first, last = np.full(S, T), np.zeros(S, int)
    i, j = S, T
    while i > 0 and j > 0:
        first[i - 1], last[i - 1] = min(first[i - 1], j - 1), max(last[i - 1], j - 1)
        i, j = i - (came[i, j] != 2), j - (came[i, j] != 1)
    return first, last


def quiet_frames(waveform: np.ndarray) -> np.ndarray:
    """(N // 160,) whether each 10 ms are near the noise floor of the audio."""
    whole = waveform[: len(waveform) // _FRAME * _FRAME].reshape(-1, _FRAME)
    level = np.sqrt((whole**2).mean(axis=1))
    if not len(level):
        return np.zeros(0, bool)
    noise, loud = np.percentile(level, [5, 95])
    return level <= noise + QUIET * (loud - noise)


def _moved_to_pauses(starts: list[float], end: float, quiet: np.ndarray) -> list[tuple[float, float]]:
    """The times of words that start at `starts`, the last one ending at `end`, with boundaries moved to pauses."""
    pauses = _runs(quiet)
    seams = [_pause_near(at, pauses) for at in starts]
    ends = [begin for begin, _ in seams[1:]] + [_pause_near(end, pauses)[0]]
    times, at = [], 0.0
    for (_, start), stop in zip(seams, ends, strict=True):
        start = max(start, at)
        at = max(start, stop)
        times.append((round(start, 2), round(at, 2)))
    return times


def _pause_near(at: float, pauses: np.ndarray) -> tuple[float, float]:
    """The pause (begin, end) in seconds that is nearest to a time, or the time itself if none is within REACH_S."""
    if not len(pauses):
        return at, at
    distance = np.maximum(0.0, np.maximum(pauses[:, 0] - at, at - pauses[:, 1]))
    # Prefer longer pauses.
    best = int((distance - 0.5 * np.minimum(pauses[:, 1] - pauses[:, 0], 2 * REACH_S)).argmin())
    if distance[best] > REACH_S:
        best = int(distance.argmin())
    begin, end = pauses[best]
    return (float(begin), float(end)) if distance[best] <= REACH_S else (at, at)


def _runs(quiet: np.ndarray) -> np.ndarray:
    """(n, 2): begin and end in seconds of every run of at least two quiet frames."""
    edges = np.flatnonzero(np.diff(np.r_[False, quiet, False]))
    runs = edges.reshape(-1, 2)
    return runs[runs[:, 1] - runs[:, 0] >= 2] * _FRAME_S
