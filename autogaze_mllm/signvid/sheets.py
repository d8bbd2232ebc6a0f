"""Sheets: short videos of SignVid's train split that are full of signs, with what stands in every cell of the raster.

A tower learns to read on them before an LLM listens to it, as towers are taught before they are put into an MLLM. What
they show is drawn, filmed and compressed as in SignVid, only denser: hundreds of signs in a frame instead of a few.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ..video.reader import VideoReader
from ..video.writer import write_video
from .dataset import CODEC, FPS
from .plan import PlacedSign, VideoPlan, VideoShape, draw_digit, draw_mark, plan_video
from .render import render_video
from .signs import BORDER, COLOURS, DIGITS, FONTS, MARKS, Sign, Warp, plate_size

SIDE, FRAMES = 672, 6  # 3 x 3 tiles; signs turn up in the first half and stay
RASTER = 16
ROOM = (3, 2)  # cells from one sign to the next, along x and y: both glyphs and the plate's edge
KINDS = ("mark", "digit", "colour", "place")
SIZES = (len(MARKS), len(DIGITS), len(COLOURS), 2)  # classes of each kind
NOTHING, UNKNOWN = -1, -2  # no sign is near the cell; the edge of one reaches into it


def plan_sheet(seed: int, number: int, jitter: int = 2) -> VideoPlan:
    """Sheet `number` of the train split; any number of signs, in colours that repeat."""
    shape = VideoShape(SIDE, SIDE, FRAMES, signs=1, order=False, jitter=jitter)
    rng = np.random.default_rng([seed, number, 5])
    columns, rows = SIDE // RASTER, SIDE // RASTER
    first = rng.integers(1, 1 + np.array(ROOM))
    height, width = plate_size()
    share, signs = rng.uniform(0.05, 0.7), []
    for column in range(int(first[0]), columns - 2, ROOM[0]):
        for row in range(int(first[1]), rows - 1, ROOM[1]):
            if rng.random() > share:
                continue
            dx, dy = (int(offset) for offset in rng.integers(-jitter, jitter + 1, 2))
            x, y = RASTER * column - BORDER + dx, RASTER * row - BORDER + dy
            colour, font = str(rng.choice(list(COLOURS))), str(rng.choice(FONTS["train"]))
            sign = Sign(draw_mark(rng), draw_digit(rng), colour, font, draw_warp(rng))
            if x + width <= SIDE and y + height <= SIDE:
                signs.append(PlacedSign(sign, int(rng.integers(0, FRAMES // 2)), FRAMES, x, y))
    return dataclasses.replace(plan_video(shape, "train", seed, number), signs=tuple(signs))


def draw_warp(rng: np.random.Generator) -> Warp | None:
    """Two of three signs have a face of their own, so that a tower learns letters rather than nine fonts."""
    if rng.random() < 1 / 3:
        return None
    return Warp(rng.uniform(0.75, 1.2), rng.uniform(0.85, 1.15), rng.uniform(-0.15, 0.25))


def sheet_labels(plan: VideoPlan, frame: int) -> np.ndarray:
    """(rows, columns, 4) int8: classes of mark, digit and colour, and which of the two cells of its sign a cell is;
    NOTHING far from signs, UNKNOWN at their edges."""
    labels = np.full((SIDE // RASTER, SIDE // RASTER, len(KINDS)), NOTHING, dtype=np.int8)
    colours = list(COLOURS)
    there = [shown for shown in plan.signs if shown.start <= frame < shown.end]
    height, width = plate_size(plan.shape.size)
    for shown in there:
        rows = slice(max(shown.y // RASTER, 0), (shown.y + height - 1) // RASTER + 1)
        columns = slice(max(shown.x // RASTER, 0), (shown.x + width - 1) // RASTER + 1)
        labels[rows, columns] = UNKNOWN
    for shown in there:
        column, row = (round((edge + BORDER) / RASTER) for edge in (shown.x, shown.y))
        known = (MARKS.index(shown.sign.mark), DIGITS.index(shown.sign.digit), colours.index(shown.sign.colour))
        for half in range(2):
            labels[row, column + half] = (*known, half)
    return labels


def write_sheet(folder: Path, seed: int, number: int, jitter: int = 2) -> None:
    """FOLDER/NUMBER-frames.npy (2, SIDE, SIDE, 3) uint8, as decoded, and -labels.npy: an early frame and the last."""
    plan = plan_sheet(seed, number, jitter)
    video = folder / f"{number:05}.mp4"
    write_video(video, render_video(plan), FPS, options=CODEC)
    chosen = [number % (FRAMES // 2), FRAMES - 1]
    frames = np.concatenate([chunk.frames for chunk in VideoReader(video).read(chosen, chunk=2)])
    video.unlink()
    np.save(folder / f"{number:05}-labels.npy", np.stack([sheet_labels(plan, frame) for frame in chosen]))
    np.save(folder / f"{number:05}-frames.npy", frames)
