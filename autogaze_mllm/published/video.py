"""Reading and preparing frames, as the published code does.

Frames are what the file holds, not what a player shows: no rotation, no shape of pixels, colours as libswscale converts
them by default. `am.gaze_video` shows a video as a player does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
import torch

from ..common.errors import InputError, first_line
from ..training.data.clips import frame_indices


def read_video_pyav(container: Any, indices: Sequence[int]) -> np.ndarray:
    """The frames with these numbers, in the order of the video, each once: (n, height, width, 3) uint8 RGB.

    container: of av.open. Numbers beyond the end are left out. Raises InputError where no frame is left.
    """
    wanted = {int(number) for number in indices}
    if not wanted or min(wanted) < 0:
        raise InputError(f"indices of frames must be numbers from 0 on, got {list(indices)[:8]}")
    name, last = getattr(container, "name", None) or "video", max(wanted)
    frames = []
    try:
        container.seek(0)
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number >= last:
                break
    except (av.error.FFmpegError, IndexError) as error:
        what = "there is no video stream" if isinstance(error, IndexError) else first_line(error)
        raise InputError(f"{name}: cannot be decoded: {what}") from error
    if not frames:
        raise InputError(f"{name}: none of the frames {min(wanted)} to {last} is there")
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{name}: the size of its frames changes")
    return np.stack(frames)


def sample_frame_indices(
    clip_len: int, frame_sample_rate: int, seg_len: int, random_sample_frame: bool = False
) -> np.ndarray:
    """(clip_len,) numbers of frames, about `frame_sample_rate` apart, of a video of `seg_len` frames: from its start,
    or from a random place that numpy's global generator decides."""
    if min(clip_len, frame_sample_rate, seg_len) < 1:
        given = f"{clip_len}, {frame_sample_rate}, {seg_len}"
        raise InputError(f"clip_len, frame_sample_rate and seg_len must be at least 1, got {given}")
    random = np.random.default_rng(np.random.randint(2**31)) if random_sample_frame else None
    return np.array(frame_indices(seg_len, clip_len, frame_sample_rate, random), dtype=np.int64)


def process_video_frames(video: np.ndarray, clip_len: int) -> np.ndarray:
    """The first `clip_len` frames of (n, height, width, 3); the last one is repeated where there are fewer."""
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[-1] != 3 or not len(video) or clip_len < 1:
        raise InputError(
            f"expected frames (n, height, width, 3) and a length of 1 or more, got {video.shape}, {clip_len}"
        )
    return video[np.minimum(np.arange(clip_len), len(video) - 1)]


def transform_video_for_pytorch(video: np.ndarray, transform: Callable[[list[np.ndarray]], Any] | None = None) -> Any:
    """Frames (n, height, width, 3) through an image processor, of AutoGaze or of transformers -> tensor (n, 3, h, w);
    without one, the frames themselves in that order."""
    frames: Any = list(video)
    if transform is not None:
        found = transform(frames)
        frames = found["pixel_values"] if hasattr(found, "keys") else found
        if len(frames) == 1 and np.ndim(frames[0]) == 4:  # of one video, frames in a list of their own
            frames = frames[0]
    pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
    if pixels.ndim == 4 and pixels.shape[1] != 3 and pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise InputError(f"expected frames of three channels, got {tuple(pixels.shape)}")
    return pixels.contiguous()
