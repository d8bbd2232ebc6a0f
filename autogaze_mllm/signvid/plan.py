"""What happens in a video, before a pixel is drawn: scenes, the camera's way, signs with their times and places."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..common.errors import InputError
from ..common.fields import Number, setting, settings
from ..video.tiles import choose_tiles
from .backgrounds import FAMILIES
from .signs import ARROWS, BORDER, COLOURS, DIGITS, FONTS, LETTERS, SIZE, Sign, plate_size

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
MARGIN = 6  # pixels between signs
TRIES = 400
LARGEST = (3840, 2160, 1024)
TILE, TILES_4K = 224, 16 * 9
GAIN = 0.0003  # what a patch must bring for signs to be read, see VideoSettings.gain; chosen on development videos
FONT_SIZES, RASTERS, JITTERS = (8, 48), (4, 128), (0, 8)  # pixels: least and most
NOISIEST = 0.25


@settings("SignVid: ")
class VideoShape:
    """Pixels and frames of a video, and its signs.

    Signs stand still on screen, their cells on a raster, each moved by up to `jitter` pixels, which suits towers with
    patches of the raster's size.
    """

    width: int = setting("pixels", default=1344, at_least=1, at_most=LARGEST[0], flag="")
    height: int = setting("pixels", default=1344, at_least=1, at_most=LARGEST[1], flag="")
    frames: int = setting(f"up to {LARGEST[2]}", default=16, usual=False, at_least=1, at_most=LARGEST[2])
    signs: int = setting(
        f"in a video, up to {len(COLOURS)}",
        default=5,
        usual=False,
        manual="how many turn up, at most as many as there are colours",
        at_least=1,
        at_most=len(COLOURS),
        refusal=f"a video has 1 to {len(COLOURS)} signs",
    )
    size: int = setting(
        "size of the signs' font in pixels",
        default=SIZE,
        usual=False,
        at_least=FONT_SIZES[0],
        at_most=FONT_SIZES[1],
        flag="--font",
    )
    order: bool = setting(
        "all signs are there all the time",
        default=True,
        usual=False,
        manual="whether they turn up one after the other; otherwise all are there from the first frame on",
        off="--at-once",
    )
    raster: Number = setting(
        "pixels between the cells; a broken number where the frame is resized before it is cut into tiles",
        default=16.0,
        at_least=RASTERS[0],
        at_most=RASTERS[1],
        flag="",
    )
    jitter: int = setting(
        "pixels that a sign may be off the raster of 16 by",
        default=2,
        usual=False,
        at_least=JITTERS[0],
        at_most=JITTERS[1],
    )
    noise: Number = setting(
        "noise of the camera's sensor, as a share of full scale at mid grey",
        default=0.0,
        usual=False,
        manual="standard deviation of the sensor's noise at mid grey, black to white being 1; 0: a clean picture",
        at_least=0,
        at_most=NOISIEST,
    )

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 64:
            raise InputError(f"sides must be even and at least 64, got {self.width}x{self.height}")
        if self.order and self.frames < self.signs:
            raise InputError(f"{self.signs} signs cannot turn up one after the other in {self.frames} frames")


def shape_4k(frames: int, signs: int) -> VideoShape:
    """3840x2160, which is shrunk a little when it is cut into TILES_4K tiles: its signs are that much larger."""
    width, height = LARGEST[:2]
    shrinks = width / (choose_tiles(width, height, TILES_4K, TILE)[0] * TILE)
    return VideoShape(width, height, frames, signs, round(SIZE * shrinks), raster=16 * shrinks)


@dataclass(frozen=True)
class PlacedSign:
    """A sign in frames [start, end). x, y: pixels of its upper left corner on screen, where it stands still."""

    sign: Sign
    start: int
    end: int
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """Frames [start, end) on one background. camera: its upper left corner in the world, (frames, 2) as x and y."""

    start: int
    end: int
    family: str
    camera: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class VideoPlan:
    """seed: of everything that is drawn at random while rendering."""

    shape: VideoShape
    split: Split
    seed: tuple[int, ...]
    scenes: tuple[Scene, ...]
    signs: tuple[PlacedSign, ...]

    @property
    def codes(self) -> list[str]:
        """In the order in which they turn up."""
        return [shown.sign.code for shown in self.signs]


def plan_video(shape: VideoShape, split: Split, seed: int, number: int) -> VideoPlan:
    """Video `number` of a split; it depends on the arguments alone."""
    if split not in SPLITS:
        raise InputError(f"SignVid has no split {split!r}; it has: {', '.join(SPLITS)}")
    key = (seed, SPLITS.index(split), number)
    rng = np.random.default_rng(key)
    scenes = _scenes(shape, split, rng)
    signs: list[PlacedSign] = []
    for sign, (start, end) in zip(draw_signs(shape.signs, split, rng), _times(shape, scenes, rng), strict=True):
        signs.append(_placed(sign, start, end, shape, signs, rng))
    return VideoPlan(shape, split, key, tuple(scenes), tuple(signs))


def draw_signs(count: int, split: Split, rng: np.random.Generator) -> list[Sign]:
    """Signs of different colours and different texts."""
    colours = rng.permutation(list(COLOURS))[:count]
    codes: list[tuple[str, str]] = []
    while len(codes) < count:
        code = (draw_mark(rng), draw_digit(rng))
        if code not in codes:
            codes.append(code)
    fonts = rng.choice(FONTS[split], count)
    return [Sign(*code, str(colour), str(font)) for code, colour, font in zip(codes, colours, fonts, strict=True)]


def draw_mark(rng: np.random.Generator) -> str:
    """One in six is an arrow."""
    return str(rng.choice(list(ARROWS))) if rng.random() < 1 / 6 else str(rng.choice(list(LETTERS)))


def draw_digit(rng: np.random.Generator) -> str:
    return str(rng.choice(list(DIGITS)))


def _scenes(shape: VideoShape, split: Split, rng: np.random.Generator) -> list[Scene]:
    """One scene, or several with cuts between them, none shorter than the signs' time."""
    hold = hold_of(shape)
    moments = np.arange(1, shape.frames // hold) * hold
    most = min(len(moments) // 2, 4) if shape.order else 0
    cuts = (
        sorted(int(cut) for cut in rng.choice(moments, int(rng.integers(0, most + 1)), replace=False)) if most else []
    )
    edges = [0, *cuts, shape.frames]
    reach = camera_reach(shape)
    scenes = []
    for start, end in itertools.pairwise(edges):
        count = end - start
        kind = rng.choice(["still", "still", "pan", "pan", "shake"])
        path = np.zeros((count, 2))
        if kind == "pan":
            speed = rng.uniform(0.5, 4.0) * rng.choice([-1, 1], 2) * rng.uniform(0, 1, 2)
            path = np.arange(count)[:, None] * speed
        elif kind == "shake":
            path = rng.integers(-2, 3, (count, 2)).astype(float)
        middle = rng.uniform(0.3, 0.7, 2) * 2 * reach
        path = np.abs((path + middle + 2 * reach) % (4 * reach) - 2 * reach)  # turns back where its reach ends
        camera = tuple((int(x), int(y)) for x, y in path)
        scenes.append(Scene(start, end, str(rng.choice(FAMILIES[split])), camera))
    return scenes


def camera_reach(shape: VideoShape) -> int:
    """The world is larger than the frame by twice this, in pixels."""
    return 8 if min(shape.width, shape.height) < 448 else 64


def hold_of(shape: VideoShape) -> int:
    """Frames that a sign is shown for, at least; at most one more for every three."""
    return max(shape.frames // 5, 1) if shape.frames < 64 else max(shape.frames // 20, 8)


def _times(shape: VideoShape, scenes: Sequence[Scene], rng: np.random.Generator) -> list[tuple[int, int]]:
    """[start, end) of each sign, by start; a sign ends with its scene, and is there for `hold_of` frames at least."""
    if not shape.order:
        return [(0, shape.frames)] * shape.signs
    hold = hold_of(shape)
    possible = [(start, scene.end) for scene in scenes for start in range(scene.start, scene.end - hold + 1)]
    edges = np.linspace(0, len(possible), shape.signs + 1).astype(int)  # one sign in each part: no two start at once
    chosen = [possible[int(rng.integers(first, last))] for first, last in itertools.pairwise(edges)]
    return [(start, min(start + hold + int(rng.integers(0, hold // 3 + 1)), end)) for start, end in chosen]


def _placed(
    sign: Sign, start: int, end: int, shape: VideoShape, others: Sequence[PlacedSign], rng: np.random.Generator
) -> PlacedSign:
    """A place that is clear of the signs that are there at the same time."""
    height, width = plate_size(shape.size)
    busy = [other for other in others if other.start < end and start < other.end]
    columns, rows = int((shape.width - width) / shape.raster), int((shape.height - height) / shape.raster)
    for _ in range(TRIES):
        column, row = rng.integers(1, max(columns, 2)), rng.integers(1, max(rows, 2))
        dx, dy = rng.integers(-shape.jitter, shape.jitter + 1, 2)
        x = round(column * shape.raster) - BORDER + int(dx)
        y = round(row * shape.raster) - BORDER + int(dy)
        inside = x >= 0 and y >= 0 and x + width <= shape.width and y + height <= shape.height
        if inside and all(_apart(x, y, other, height, width) for other in busy):
            return PlacedSign(sign, start, end, x, y)
    raise InputError(f"SignVid: {shape.signs} signs find no room in {shape.width}x{shape.height} pixels")


def _apart(x: int, y: int, other: PlacedSign, height: int, width: int) -> bool:
    return abs(x - other.x) >= width + MARGIN or abs(y - other.y) >= height + MARGIN


def plan_facts(plan: VideoPlan) -> list[dict[str, Any]]:
    """The signs as json values: what is true of a video."""
    return [
        {
            "code": shown.sign.code,
            "colour": shown.sign.colour,
            "font": shown.sign.font,
            "frames": [shown.start, shown.end],
            "place": [shown.x, shown.y],
        }
        for shown in plan.signs
    ]
