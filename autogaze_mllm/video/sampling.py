"""Which frames of a video to look at."""

from __future__ import annotations

import numpy as np

from ..common.errors import InputError

CLOCK = 1e-3  # seconds by which a stored time may be off: many containers count milliseconds


def sample_frames(total: int, wanted: int) -> list[int]:
    """`wanted` numbers spread evenly over `total` frames, first and last included; all of them if there are fewer.

    round(linspace(0, total - 1, wanted)), the rule of NVILA-HD-Video, with repetitions left out.
    """
    if wanted < 1:
        raise InputError(f"the number of frames must be at least 1, got {wanted}")
    if wanted >= total:
        return list(range(total))
    return [int(number) for number in np.round(np.linspace(0, total - 1, wanted))]


def sample_part(
    seconds: np.ndarray,
    over: float,
    wanted: int,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> list[int]:
    """Numbers of the frames to look at, of those with start <= time < end. seconds: (n,) time of each, ascending; over:
    when the last one is over.

    fps: what is shown every 1/fps seconds from the first of them on, each frame once; otherwise `wanted` of them,
    spread evenly. A part that lies between two frames holds the one that is on the screen then. Raises InputError where
    the video is over by then, or has not begun.
    """
    first = 0 if start is None else int(np.searchsorted(seconds, start - CLOCK / 2))
    last = len(seconds) if end is None else int(np.searchsorted(seconds, end - CLOCK / 2))
    if first >= last:
        begin = seconds[0] if start is None else start
        if not seconds[0] <= begin < over:
            part = f"from {begin:g} seconds on" if end is None else f"between {begin:g} and {end:g} seconds"
            raise InputError(f"no frame {part}; the video shows frames from {seconds[0]:g} to {over:g} seconds")
        first = max(first, 1) - 1
        last = first + 1
    if fps is None:
        return [first + number for number in sample_frames(last - first, wanted)]
    until = over if last == len(seconds) else float(seconds[last])
    until = until if end is None else min(until, end)
    return [first + number for number in _shown_every(seconds[first:last], until, fps)]


def _shown_every(seconds: np.ndarray, over: float, fps: float) -> list[int]:
    """Numbers of the frames that are on the screen 0, 1/fps, 2/fps, ... seconds after the first one began. seconds:
    (n,) of each; over: the end of the last."""
    begins = np.maximum(np.append(seconds, over) - seconds[0] - CLOCK / 2, 0.0) * fps
    begins[-1] = max(begins[-1], begins[-2] + np.finfo(float).tiny)
    moments = np.ceil(begins[:-1])  # the first one that is not before the frame
    return [int(number) for number in np.flatnonzero((moments < begins[1:]) | (begins[:-1] == 0))]
