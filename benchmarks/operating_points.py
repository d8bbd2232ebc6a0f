"""The frame rates and resolutions of the AutoGaze paper, and the share of the patches that is kept there."""

from __future__ import annotations

from pathlib import Path

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.files import read_fields
from autogaze_mllm.common.storage.json_text import Fields

Point = tuple[int, int, float]  # frames per second, side in pixels, kept share of the patches

TILE, CLIP = 224, 16  # pixels of a tile's side, frames of a clip
PAPER: list[Point] = [
    (1, 224, 0.205),
    (3, 224, 0.181),
    (10, 224, 0.132),
    (30, 224, 0.069),
    (30, 448, 0.058),
    (30, 896, 0.040),
    (30, 1792, 0.024),
    (30, 3584, 0.009),
]


def measured_points(path: Path, selector: str) -> list[Point]:
    """What `required_ratio.py` wrote: the ratios that a selector needs, mean over videos. Raises InputError where the
    file holds none of it."""
    needed = [Fields(line, path) for line in read_fields(path).get("needed", list[dict])]
    named = list(dict.fromkeys(line.get("selector", str) for line in needed))
    if selector not in named:
        raise InputError(f"{path}: holds no ratios of {selector!r}; it holds those of {', '.join(named) or 'nobody'}")
    losses = [line.get("loss", float) for line in needed if line.get("selector", str) == selector]
    return [
        (line.get("fps", int), line.get("side", int), line.get("ratio", float))
        for line in needed
        if line.get("selector", str) == selector and line.get("loss", float) == losses[0]
    ]
