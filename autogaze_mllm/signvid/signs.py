"""Signs: coloured plates with two glyphs in fine lines.

The glyphs are high-pass letters, the "vanishing optotypes" of vision science (Howland, Ginsburg and Campbell 1978):
dark cores with light edges whose mean is that of the plate, so that below their resolution limit they vanish instead
of blurring. Plates are weathered by a smooth grain, which hides what little is left of the letters in a shrunk one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

LETTERS = "ACEFHJKLMNPRTUXY"  # none that look alike, nor like a digit
DIGITS = "23456789"
ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COLOURS = {
    "red": (172, 84, 84),
    "yellow": (168, 160, 80),
    "green": (84, 164, 92),
    "blue": (84, 104, 176),
    "purple": (156, 88, 164),
    "grey": (132, 132, 132),
}
FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSans-BoldOblique",
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "STIXGeneralBol",
        "cmb10",
        "cmtt10",
    ),
    "test": ("DejaVuSansMono", "DejaVuSansMono-Bold", "cmss10"),
}
SIZE = 14  # of the font, in pixels: capitals are about 10 high and 8 to 10 wide
STROKE = 2  # pixels: width of an arrow's lines
FINER = 4  # times larger are glyphs drawn that are warped
CELL, BORDER = 16, 2  # pixels: room of a glyph at this size, and the dark edge around a plate
CORE = 0.8  # pixels: deviation of the blur that is taken away from a glyph
CONTRAST, GRAIN, GRAIN_SIZE = 72.0, 20.0, 1.5  # levels; deviation of the grain in levels, and of its blur in pixels
EDGE = 36


@dataclass(frozen=True)
class Warp:
    """What makes another face of a font. width, height: of its glyphs, as a factor. slant: pixels to the right for
    every pixel up."""

    width: float = 1.0
    height: float = 1.0
    slant: float = 0.0


@dataclass(frozen=True)
class Sign:
    """mark: a letter, or the name of an arrow. digit: one of DIGITS. colour: of the plate. font: a file's name. warp:
    of its glyphs; videos have none, sheets that a tower learns from do."""

    mark: str
    digit: str
    colour: str
    font: str
    warp: Warp | None = None

    @property
    def code(self) -> str:
        """As questions and answers write it."""
        return code_of(self.mark, self.digit)


def code_of(mark: str, digit: str) -> str:
    return f"{mark} {digit}" if mark in ARROWS else mark + digit


MARKS = (*LETTERS, *ARROWS)


@cache
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that matplotlib brings."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


@lru_cache(4096)
def glyphs(mark: str, digit: str, font: str, size: int, warp: Warp | None = None) -> np.ndarray:
    """Two cells side by side with a glyph in the middle of each, as they are inked: (cell, 2 * cell) float32 in
    [-1, 1], about 0 on average; 1 is darkest."""
    cell = cell_of(size)
    if warp is None:
        image = _draw_glyphs(mark, digit, font, size, STROKE)
    else:
        large = _draw_glyphs(mark, digit, font, FINER * size, FINER * STROKE)
        halves = [large.crop((left, 0, left + large.height, large.height)) for left in (0, large.height)]
        image = Image.new("L", (2 * cell, cell))
        for left, half in zip((0, cell), halves, strict=True):
            image.paste(_warped(half, warp).resize((cell, cell), Image.Resampling.BOX), (left, 0))
    mask = np.asarray(image, dtype=np.float32) / 255
    ink = mask - gaussian_filter(mask, CORE * size / SIZE)
    return ink / np.abs(ink).max()


def _draw_glyphs(mark: str, digit: str, font: str, size: int, stroke: int) -> Image.Image:
    chosen, cell = load_font(font, size), cell_of(size)
    cap = -round(chosen.getbbox("H", anchor="ls")[1])
    image = Image.new("L", (2 * cell, cell))
    pen = ImageDraw.Draw(image)
    base = (cell + cap) // 2
    if mark in ARROWS:
        _draw_arrow(pen, cell / 2, cap, stroke, *ARROWS[mark])
    else:
        pen.text((cell / 2, base), mark, fill=255, font=chosen, anchor="ms")
    pen.text((3 * cell / 2, base), digit, fill=255, font=chosen, anchor="ms")
    return image


def _warped(glyph: Image.Image, warp: Warp) -> Image.Image:
    """A square picture of one glyph, stretched and slanted about its middle."""
    middle = glyph.height / 2
    across, down, slant = 1 / warp.width, 1 / warp.height, warp.slant / warp.width
    there = (across, slant, middle * (1 - across - slant), 0.0, down, middle * (1 - down))
    return glyph.transform(glyph.size, Image.Transform.AFFINE, there, Image.Resampling.BILINEAR)


def _draw_arrow(pen: ImageDraw.ImageDraw, centre: float, side: int, stroke: int, dx: int, dy: int) -> None:
    """A shaft and two barbs, `side` pixels long, around (centre, centre); (dx, dy) is where it points."""
    reach, barb = side / 2, side / 2.5
    tip = (centre + dx * reach, centre + dy * reach)
    pen.line([(centre - dx * reach, centre - dy * reach), tip], fill=255, width=stroke)
    for turn in (-1, 1):
        pen.line([tip, (tip[0] - barb * (dx + turn * dy), tip[1] - barb * (dy + turn * dx))], fill=255, width=stroke)


def cell_of(size: int) -> int:
    """Pixels along one side of a glyph's cell."""
    return round(CELL * size / SIZE)


def plate_size(size: int = SIZE) -> tuple[int, int]:
    """(height, width) in pixels of a sign: its two cells and the dark edge around them."""
    return cell_of(size) + 2 * BORDER, 2 * cell_of(size) + 2 * BORDER


def draw_plate(colour: str, height: int, width: int, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """An empty plate (height, width, 3) float32: its colour, grain, and a dark edge."""
    blur = GRAIN_SIZE * size / SIZE
    grain = gaussian_filter(rng.standard_normal((height + 16, width + 16)), blur)[8:-8, 8:-8]
    grain *= GRAIN * 2 * blur * np.sqrt(np.pi)  # a blurred white noise has the deviation 1 / (2 blur sqrt(pi))
    plate = np.asarray(COLOURS[colour], dtype=np.float32) + grain[..., None].clip(-2 * GRAIN, 2 * GRAIN)
    edge = np.ones((height, width), dtype=bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    plate[edge] = EDGE
    return plate.astype(np.float32)


def draw_sign(sign: Sign, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """(h, w, 3) uint8, as large as `plate_size` says. rng: of the grain."""
    plate = draw_plate(sign.colour, *plate_size(size), rng, size)
    ink = glyphs(sign.mark, sign.digit, sign.font, size, sign.warp)
    plate[BORDER:-BORDER, BORDER:-BORDER] -= CONTRAST * ink[..., None]
    return plate.clip(16, 239).astype(np.uint8)
