"""What a tower and projector make of many videos at once, gazed in one way: the same visual tokens that each has when
it is encoded alone, for a fraction of the launches.

Shapes: V videos of T frames, D channels of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...common.errors import InputError
from ...common.pixels import resize_frames
from ...gaze.gazed_video import GazedVideo
from ...gaze.pipeline import cut_tiles
from ...gaze.selectors.base import AnySelector, ending_at, stop_rule
from ...gaze.settings import VideoSettings
from ...mllm.model import GazedModel
from ...video.tiles import choose_tiles


@dataclass(frozen=True)
class Look:
    """A way of looking at videos."""

    name: str
    selector: AnySelector
    settings: VideoSettings


@torch.no_grad()
def look_at(model: GazedModel, videos: Sequence[np.ndarray], looks: Sequence[Look]) -> list[dict[str, torch.Tensor]]:
    """videos: frames (T, height, width, 3) uint8, all of one size -> for each its visual tokens (n, D) by look."""
    found: list[dict[str, torch.Tensor]] = [{} for _ in videos]
    resized: dict[tuple[int, int], torch.Tensor] = {}
    side = model.tower.grid.scales[-1][0]
    frames, height, width, _ = videos[0].shape
    for look in looks:
        tiles = choose_tiles(width, height, look.settings.max_tiles, side, look.settings.enlarge)
        if tiles not in resized:
            size = (tiles[1] * side, tiles[0] * side)
            resized[tiles] = torch.stack([resize_frames(video, *size, model.device) for video in videos])
        gazed = _gazed(model, resized[tiles], tiles, look)
        features = model.family.gazed_features(model.tower, [gazed])[0]
        counts = gazed.picture_counts()
        lengths = [model.family.gazed_count(counts[start : start + frames]) for start in range(0, len(counts), frames)]
        for row, tokens in zip(found, model.family.project(features, counts).split(lengths), strict=True):
            row[look.name] = tokens
    return found


def _gazed(model: GazedModel, pictures: torch.Tensor, tiles: tuple[int, int], look: Look) -> GazedVideo:
    """pictures (V, T, 3, h, w) uint8 -> all videos in one, their pictures numbered through."""
    count = tiles[0] * tiles[1]
    chunk = min(look.settings.chunk_frames, pictures.shape[1])
    if pictures.shape[1] % chunk:
        raise InputError(f"{pictures.shape[1]} frames do not part into chunks of {chunk}")
    chunks = pictures.flatten(0, 1).split(chunk)
    pixels = torch.cat([cut_tiles(part, tiles, 0, count) for part in chunks]).float().div_(255)
    rule = stop_rule(look.settings.loss, look.selector, look.settings)
    info = ending_at(look.settings.gain, look.selector).select(
        pixels, model.tower.grid, look.settings.ratio_for(chunk), rule
    )
    first = torch.arange(len(chunks), device=pixels.device).repeat_interleave(count) * chunk
    numbers = (first[:, None] + torch.arange(chunk, device=pixels.device)).flatten()
    gazed = GazedVideo.from_info(pixels, info, model.tower.grid, None, numbers)
    gazed.patches = model.family.pixels.normalize_patches(gazed.patches).to(model.dtype)
    gazed.tiles = tiles
    return gazed
