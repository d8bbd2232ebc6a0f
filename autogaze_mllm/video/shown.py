"""From a decoded frame to the picture that a player shows: upright, square pixels, the right colours."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter
from PIL import Image

UNSPECIFIED = 2  # colour matrix of a frame that says nothing
HIGH_RANGE = {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67}  # PQ and HLG
FLATTEST = 4  # pixels further from square than this are an error in the file, not a way of storing pictures


class Orientation(NamedTuple):
    """Rows and columns are swapped first, then rows are taken from below, then columns from the right."""

    swapped: bool
    rows: bool
    columns: bool


QUARTER_TURNS = (
    Orientation(False, False, False),
    Orientation(True, True, False),
    Orientation(False, True, True),
    Orientation(True, False, True),
)
"""By their number, counter-clockwise."""


class Screen:
    """Shows the frames of one stream, for one thread. pixel_aspect: width of a pixel by its height; None or 0: it is
    not known."""

    def __init__(self, pixel_aspect: Fraction | None = None) -> None:
        self.pixel_aspect = pixel_aspect
        # Keeps what it works out for one kind of frame: threads, and for high dynamic range tables that take seconds.
        self._converter = VideoReformatter()

    def picture(self, frame: VideoFrame) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        width, height = square_sides(frame.width, frame.height, self.pixel_aspect)
        stretched = (width, height) != (frame.width, frame.height)
        how: dict[str, Any] = {"interpolation": Interpolation.BICUBIC} if stretched else {}
        if of_high_range(frame):
            how["dst_color_trc"], how["dst_color_primaries"] = ColorTrc.BT709, ColorPrimaries.BT709
            how["dst_colorspace"] = Colorspace.ITU709
        else:
            how["src_colorspace"] = how["dst_colorspace"] = Colorspace.ITU709 if of_unsaid_hd(frame) else None
        clear = has_alpha(frame)
        shown = self._converter.reformat(frame, width, height, "rgba" if clear else "rgb24", **how).to_ndarray()
        return _turned(_over_white(shown) if clear else shown, orientation(frame))


def _over_white(picture: np.ndarray) -> np.ndarray:
    """(height, width, 4) uint8 -> (height, width, 3): what is transparent is white, as in pictures."""
    shown = Image.new("RGB", picture.shape[1::-1], "white")
    clear = Image.fromarray(picture)
    shown.paste(clear, mask=clear.getchannel("A"))
    return np.asarray(shown)


def square_sides(width: int, height: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Sides of the picture with square pixels; one is enlarged, so that nothing is lost."""
    if not pixel_aspect or not 1 / FLATTEST <= pixel_aspect <= FLATTEST:
        return width, height
    if pixel_aspect > 1:
        return max(round(width * pixel_aspect), 1), height
    return width, max(round(height / pixel_aspect), 1)


def of_high_range(frame: VideoFrame) -> bool:
    """Whether its colours are those of PQ or HLG, and not of a screen."""
    return frame.color_trc in HIGH_RANGE and _has_chroma(frame)


def has_alpha(frame: VideoFrame) -> bool:
    return any(part.is_alpha for part in frame.format.components)


def of_unsaid_hd(frame: VideoFrame) -> bool:
    """Whether the file says no colour matrix of pictures for which players take that of HD, by their size."""
    return frame.colorspace == UNSPECIFIED and (frame.width >= 1280 or frame.height > 576) and _has_chroma(frame)


def _has_chroma(frame: VideoFrame) -> bool:
    return not frame.format.is_rgb and len(frame.format.components) >= 3


def orientation(frame: VideoFrame) -> Orientation:
    """What puts it upright, as the display matrix says, to the nearest right angle."""
    try:
        side_data: Any = frame.side_data
        matrix = side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # beside it lies something that PyAV does not know (EXIF); it still tells the angle
        return QUARTER_TURNS[quarter_turns(frame)]
    if matrix is None:
        return QUARTER_TURNS[0]
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    # The matrix takes a point (x, y) of the picture to (a x + c y, b x + d y); y runs down.
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, d < 0, a < 0)
    return Orientation(True, b < 0, c < 0)


def quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise; where it is mirrored besides, that is not said."""
    return round(frame.rotation / 90) % 4


def _turned(picture: np.ndarray, how: Orientation) -> np.ndarray:
    if how.swapped:
        picture = picture.swapaxes(0, 1)
    if how.rows:
        picture = picture[::-1]
    if how.columns:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)
