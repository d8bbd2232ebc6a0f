"""The check behind SignVid: a reader that is all but perfect on the full frame fails on the shrunk one.

The reader compares with templates and is given every advantage: it knows where the sign is to a pixel, its font, and
that the picture was shrunk by the same filter as its templates, which are compared at every offset in between. On both
sides what changes slowly is taken away first, because the grain of the plates is strongest there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..video.reader import VideoReader
from .dataset import SignVidConfig, video_name
from .plan import PlacedSign
from .signs import BORDER, DIGITS, MARKS, Warp, cell_of, code_of, glyphs

SHIFT = 1  # pixels by which the reader may be off


@dataclass(frozen=True)
class Legibility:
    """Signs that were read rightly, of n: both glyphs."""

    n: int
    full: float
    shrunk: float


def shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """(h, w) -> (h / factor, w / factor) float32, by the anti-aliased bicubic filter that frames are resized with."""
    if factor == 1:
        return picture.astype(np.float32)
    size = (picture.shape[1] // factor, picture.shape[0] // factor)
    return np.asarray(Image.fromarray(picture.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))


def check_legible(folder: str | Path, recipe: SignVidConfig, *, factor: int = 3, signs: int = 100) -> Legibility:
    """Reads `signs` signs of a data set's videos (recipe: its own) at full size and shrunk."""
    right = {1: 0, factor: 0}
    total = 0
    for shown, window in islice(_windows(Path(folder), recipe), signs):
        for scale in right:
            found = read_sign(window, shown.sign.font, recipe.shape.size, scale)
            right[scale] += found == shown.sign.code
        total += 1
    return Legibility(total, right[1] / total, right[factor] / total)


def _windows(folder: Path, recipe: SignVidConfig) -> Iterator[tuple[PlacedSign, np.ndarray]]:
    """Signs with their luminance in the middle of their time."""
    for number in range(recipe.videos):
        plan = recipe.plan(number)
        reader = VideoReader(folder / "videos" / video_name(number))
        for shown in plan.signs:
            middle = (shown.start + shown.end) // 2
            frame = next(iter(reader.read([middle], chunk=1))).frames[0]
            yield shown, _cut(frame, shown, plan.shape.size)


def _cut(frame: np.ndarray, shown: PlacedSign, size: int) -> np.ndarray:
    """The sign's cells and SHIFT pixels around them, in luminance."""
    cell = cell_of(size)
    top, left = shown.y + BORDER - SHIFT, shown.x + BORDER - SHIFT
    part = frame[top : top + cell + 2 * SHIFT, left : left + 2 * cell + 2 * SHIFT]
    return part.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def read_sign(window: np.ndarray, font: str, size: int, factor: int, warp: Warp | None = None) -> str:
    """The code whose template fits best, at the best offset. window: luminance of the cells and SHIFT around them."""
    codes, templates = _templates(font, size, factor, warp)
    height, width = (side - 2 * SHIFT for side in window.shape)
    best, answer = -np.inf, ""
    for dy in range(2 * SHIFT + 1):
        for dx in range(2 * SHIFT + 1):
            part = _flat(window[dy : dy + height, dx : dx + width], factor)
            scores = templates @ part
            index = int(scores.argmax())
            if scores[index] > best:
                best, answer = float(scores[index]), codes[index]
    return answer


@lru_cache(64)
def _templates(font: str, size: int, factor: int, warp: Warp | None) -> tuple[list[str], np.ndarray]:
    """Every code as the reader expects it: (codes, pixels)."""
    pairs = [(mark, digit) for mark in MARKS for digit in DIGITS]
    rows = [_flat(-glyphs(mark, digit, font, size, warp), factor) for mark, digit in pairs]
    return [code_of(mark, digit) for mark, digit in pairs], np.stack(rows)


def _flat(picture: np.ndarray, factor: int) -> np.ndarray:
    """Cut to a multiple of `factor`, shrunk, without what changes slowly, of length one."""
    height, width = (side // factor * factor for side in picture.shape)
    shrunk = shrink(picture[:height, :width], factor)
    quick = (shrunk - gaussian_filter(shrunk, 1.5 if factor == 1 else 1.0)).ravel()
    return quick / (np.linalg.norm(quick) + 1e-6)
