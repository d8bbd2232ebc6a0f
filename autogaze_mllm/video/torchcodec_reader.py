"""Frames as torchcodec decodes them: on a GPU by its own decoder, where they stay, or on the processor.

Notable design decisions:
- which frames a file has, and when each is shown, is read as ever (`VideoReader`), so that the same ones are looked at
  whatever decodes them. Every frame that comes is checked to be the one that was asked for, by its time;
- a seek may land too late: containers are searched by decoding times, and torchcodec does not notice. What comes in
  place of the wanted frame is not taken for it: the file is then decoded from its beginning, without a seek. Where
  even a right time may be that of a broken picture (MPEG-TS and its kin), it is from the outset;
- what torchcodec does not do is done here (mirrored videos, pixels that are not square, the colours of HD files that
  do not say theirs), or refused: transparency, high dynamic range. The first picture of a file is compared with that
  of PyAV, so that no other reason for other colours goes unnoticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from av.video.frame import VideoFrame

from ..common.errors import InputError, first_line
from ..common.extras import require_extra
from ..common.pixels import resize_frames
from . import reader
from .reader import FrameReader, VideoReader
from .shown import (
    QUARTER_TURNS,
    Screen,
    has_alpha,
    of_high_range,
    of_unsaid_hd,
    orientation,
    quarter_turns,
    square_sides,
)

SEARCHED_BY_INDEX = {"mov", "matroska", "avi"}  # containers in which a seek lands on a keyframe
IN_ORDER = {"mpegts", "mxf", "asf"}  # those that are decoded from their beginning
LEAD = 10.0  # seconds before the first frame, where no file begins
MOST_ERRORS = 1000  # in a row, of packets that are damaged, until a frame is given up
# What torchcodec says at the end, and of packets that are damaged or not there.
AT_THE_END, NO_SEEK = "no more frames left", "Could not seek"
DAMAGE = (NO_SEEK, "Could not push packet", "Could not receive frame", "Could not read frame", "Could not flush")
BLOCKS = 8, 8  # of a picture, whose mean colours are compared
UNLIKE = 8.0  # of 255: colours of a block that differ by more are not due to rounding or to how chroma is enlarged
# From YCbCr of BT.601 and of BT.709 to RGB; the standards' weights of red and blue.
LUMA_601, LUMA_709 = (0.299, 0.114), (0.2126, 0.0722)


def require_torchcodec() -> Any:
    """The class of its decoders. Raises InputError, with what to do, where it cannot be used."""
    require_extra("torchcodec", "decoder torchcodec")
    try:
        from torchcodec import ffmpeg_major_version
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise _unusable(_reason(error)) from error
    if ffmpeg_major_version is None:
        raise _unusable("no FFmpeg was found")
    return VideoDecoder


def _unusable(reason: str) -> InputError:
    needs = "it needs FFmpeg's shared libraries, 4 to 9, and the build that goes with this torch"
    return InputError(f"torchcodec cannot be loaded ({reason}); {needs}; the decoder pyav needs neither")


class TorchcodecReader(FrameReader[torch.Tensor]):
    """Frames of a file on a device, uint8 (height, width, 3): a CUDA device decodes them itself.

    Raises InputError where torchcodec cannot be used, for what it would show otherwise than a player does, and for
    what the device cannot decode.
    """

    def __init__(self, index: VideoReader, device: torch.device) -> None:
        super().__init__()
        self._class = require_torchcodec()
        self._index, self.name = index, index.name
        self.seconds, self.last, self.fps = index.seconds, index.last, index.fps
        self.device = device if device.type == "cuda" else torch.device("cpu")
        self.decoder = f"torchcodec on {self.device.type}"
        self._first_number, frame = index.first()
        for refused, what in ((has_alpha(frame), "transparency"), (of_high_range(frame), "high dynamic range")):
            if refused:
                raise _refusal(index, f"torchcodec does not bring {what} to the screen")
        if not _is_one_of(index, SEARCHED_BY_INDEX | IN_ORDER):
            raise _refusal(index, f"torchcodec is not known to keep the times of its container ({index.container})")
        if not index.timed:
            raise _refusal(index, "its frames have no times of their own, by which torchcodec's could be known")
        if index.stays:
            raise _refusal(index, "it holds MPEG-4 frames that are not coded, which torchcodec leaves out")
        self._upright = orientation(frame)
        self._turns = quarter_turns(frame)
        self._to_709 = _from_601_to_709().to(self.device) if of_unsaid_hd(frame) else None
        self._first: VideoFrame | None = frame  # until it was compared
        self._size: torch.Size | None = None

    def _pictures(self, wanted: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        decoding = _Decoding(self._class, self._index, self.device)
        came: tuple[int, torch.Tensor] | None = None
        if self._first is not None:
            came = decoding.at(self._first_number)
            if came is not None and came[0] == self._first_number:
                self._compare(came[1], self._first)
            self._first = None
        for number in wanted:
            if came is None or came[0] < number:
                came = decoding.at(number)
            if came is None or came[0] != number or came[1].shape[0] * came[1].shape[1] > reader.MOST_PIXELS:
                self.lost.append(number)
            else:
                yield number, self._shown(came[1])

    def _shown(self, picture: torch.Tensor) -> torch.Tensor:
        """What a player shows of what torchcodec gives. (height, width, 3) uint8, both."""
        if self.device.type == "cuda" and picture.shape != (self._size or picture.shape):
            raise _refusal(self._index, "its frames change their size midway, which a GPU does not decode")
        self._size = picture.shape
        if self._to_709 is not None:
            with torch.autocast(self.device.type, enabled=False):  # in half precision it would not be exact
                picture = (picture.float() @ self._to_709.T).round_().clamp_(0, 255).byte()
        if QUARTER_TURNS[self._turns] != self._upright:  # mirrored: torchcodec has turned it and no more
            picture = torch.rot90(picture, -self._turns)
            picture = picture.transpose(0, 1) if self._upright.swapped else picture
            picture = picture.flip([axis for axis in (0, 1) if self._upright[axis + 1]])
        height, width = picture.shape[:2]
        if self._upright.swapped:
            sides = square_sides(height, width, self._index.pixel_aspect)
        else:
            sides = square_sides(width, height, self._index.pixel_aspect)[::-1]
        if sides != (height, width):
            picture = resize_frames(picture[None], *sides, picture.device)[0].permute(1, 2, 0)
        return picture

    def _compare(self, picture: torch.Tensor, frame: VideoFrame) -> None:
        """Raises InputError where a picture of torchcodec is not what PyAV shows. frame: the same one."""
        ours = self._shown(picture)
        expected = Screen(self._index.pixel_aspect).picture(frame)
        if tuple(ours.shape) != expected.shape:
            sizes = (f"{shape[1]}x{shape[0]}" for shape in (ours.shape, expected.shape))
            raise _refusal(self._index, "torchcodec shows {} pixels in place of {}".format(*sizes))
        apart = float((_blocks(ours) - _blocks(torch.from_numpy(expected)).to(ours.device)).abs().max())
        if apart > UNLIKE:
            raise _refusal(self._index, f"torchcodec shows other colours here, by up to {apart:.0f} of 255")


class _Decoding:
    """One pass over a file. By seeks, or straight: then nothing is ever sought but what lies before the first frame,
    because no other keyframe is told of."""

    def __init__(self, decoder: Any, index: VideoReader, device: torch.device) -> None:
        self._class, self._index, self._device = decoder, index, device
        self._by_seeks = _is_one_of(index, SEARCHED_BY_INDEX)
        self._straight = self._begun = False
        if self._by_seeks:
            self._open()
        else:
            self._open_straight()

    def at(self, number: int) -> tuple[int, torch.Tensor] | None:
        """The frame with this number, or the next one that decodes; None where none does. To be asked in order."""
        found = self._found(number)
        if self._straight or (found is not None and found[0] == number):
            return found
        self._open_straight()
        if self._begun:
            return self._found(number)
        self._straight = False  # the file is damaged where it begins
        self._open()
        return found

    def _open_straight(self) -> None:
        self._straight = True
        self._open()
        self._begun = False
        self._begun = self._get(1) is not None  # from there on, what is damaged is passed over and not sought again

    def _open(self) -> None:
        index = self._index
        keys = set(index.keys[:0] if self._straight else index.keys)
        frames = [{"pts": time, "duration": 1, "key_frame": int(time in keys)} for time in index.times]
        if self._straight:
            lead = 0 if index.container == "avi" else round(LEAD / index.unit)  # AVI refuses to seek there
            frames.insert(0, {"pts": index.times[0] - lead, "duration": 1, "key_frame": 1})
        try:
            self._decoder = self._class(
                index.file.for_others(),
                stream_index=index.stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=index.threads,
                device=str(self._device),
                custom_frame_mappings=json.dumps({"frames": frames}),
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            how = f"torchcodec cannot open it on {self._device.type} ({_reason(error)})"
            raise _refusal(index, how) from error

    def _found(self, number: int) -> tuple[int, torch.Tensor] | None:
        frame = self._get(number + self._straight)
        if frame is None:
            return None
        came = self._index.number_of.get(round(frame.pts_seconds / self._index.unit))
        return None if came is None else (came, frame.data)

    def _get(self, place: int) -> Any:
        """A frame by its place among those that torchcodec was told of; None where it does not come."""
        for _ in range(MOST_ERRORS if self._begun else 1):
            try:
                frame = self._decoder.get_frame_at(place)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError) as error:
                reason = _reason(error)
                if AT_THE_END in reason:
                    return None
                if not any(known in reason for known in DAMAGE) or (self._straight and NO_SEEK in reason):
                    raise _refusal(self._index, f"torchcodec cannot decode it ({reason})") from error
            else:
                self._check_card()
                return frame
        return None

    def _check_card(self) -> None:
        """Raises InputError where the processor did what the GPU cannot."""
        if self._device.type == "cuda" and self._decoder.cpu_fallback:
            how = str(self._decoder.cpu_fallback).rpartition(": ")[2].lower()
            raise _refusal(self._index, f"this GPU cannot decode {self._index.codec} as it is there ({how})")


def _is_one_of(index: VideoReader, containers: set[str]) -> bool:
    return not containers.isdisjoint(index.container.split(","))


def _refusal(index: VideoReader, why: str) -> InputError:
    return InputError(f"{index.name}: {why}; take the decoder pyav for it")


def _reason(error: Exception) -> str:
    """What torchcodec says, without the places in its source."""
    return re.sub(r"^.*\.(cpp|h):\d+, ", "", first_line(error)).rstrip(". ")


def _blocks(picture: torch.Tensor) -> torch.Tensor:
    """Mean colours of the blocks of a picture (height, width, 3): (3, *BLOCKS)."""
    return F.adaptive_avg_pool2d(picture.permute(2, 0, 1)[None].float(), BLOCKS)[0]


def _from_601_to_709() -> torch.Tensor:
    """(3, 3): what makes RGB that was converted by the matrix of BT.601 RGB of BT.709, up to what was cut off."""
    return torch.from_numpy(_to_rgb(*LUMA_709) @ np.linalg.inv(_to_rgb(*LUMA_601))).float()


def _to_rgb(red: float, blue: float) -> np.ndarray:
    """(3, 3) from Y, Cb and Cr to RGB (ITU-R BT.601 and BT.709, section 3). red, blue: their weights in Y."""
    green = 1 - red - blue
    return np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
