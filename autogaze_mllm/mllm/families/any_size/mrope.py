"""Positions of a prompt with gazed videos in three directions (mRoPE): those that its tokens have in the dense prompt.

The base's own function is asked for the positions of a prompt in which every gazed video is dense; a kept token takes
the column of the cell at its centre. Whatever the installed version of transformers does for dense videos, it does for
gazed ones, and later text stands where the dense prompt has it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ....gaze.token_map import TokenMap
from ...media import Media
from ..base import Family

TextAfter = Literal["installed", "published"]


@dataclass
class _Twin:
    """The dense prompt of one row. columns: for each real token of the gazed prompt, its place there."""

    ids: list[torch.Tensor] = field(default_factory=list)
    columns: list[torch.Tensor] = field(default_factory=list)
    videos: list[tuple[int, int]] = field(default_factory=list)  # [start, end) of each run of a video
    length: int = 0

    def text(self, ids: torch.Tensor) -> None:
        """Ids that are the same in both."""
        self.columns.append(self.length + torch.arange(len(ids)))
        self._add(ids)

    def video(self, placeholder: int, dense: int, cells: torch.Tensor) -> None:
        """A run of `dense` placeholders, of which those at `cells` are kept."""
        self.columns.append(self.length + cells)
        self.videos.append((self.length, self.length + dense))
        self._add(torch.full((dense,), placeholder))

    def _add(self, ids: torch.Tensor) -> None:
        self.ids.append(ids)
        self.length += len(ids)


def dense_cells(video: TokenMap) -> torch.Tensor:
    """(n,) cell of the finest scale of the whole picture, row by row, at the centre of each kept token."""
    scale, row, column = video.grid.locate(video.positions)
    sizes = torch.tensor(video.grid.cells)[scale]
    height, width = video.grid.cells[-1]
    columns = video.tiles[0]
    down = video.tile // columns * height + ((2 * row + 1) * height) // (2 * sizes[:, 0])
    across = video.tile % columns * width + ((2 * column + 1) * width) // (2 * sizes[:, 1])
    return down * columns * width + across


def _whole_cells(video: TokenMap) -> tuple[int, int]:
    """Rows and columns of the finest scale, all tiles together."""
    (columns, rows), (height, width) = video.tiles, video.grid.cells[-1]
    return rows * height, columns * width


def mrope_positions(
    family: Family,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    media: Sequence[Sequence[Media]],
    *,
    merge: int,
    run_per_tubelet: bool,
    text_after: TextAfter,
) -> torch.Tensor:
    """(4, B, L): plain positions, and time, row and column. merge: patches per side of a token. run_per_tubelet:
    whether the family writes a run of placeholders for every tubelet, or one for a video. text_after: where text goes
    on after a video: where the installed transformers has it, or one after its largest position, as published."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    ids, real = input_ids.cpu(), mask.bool().cpu()
    twins, grids = [], _Grids()
    for row, items in enumerate(media):
        twins.append(_twin(family, ids[row][real[row]], items, grids, merge, run_per_tubelet))
    longest = max(twin.length for twin in twins)
    dense = torch.zeros(len(twins), longest, dtype=ids.dtype)
    present = torch.zeros(len(twins), longest, dtype=torch.long)
    for row, twin in enumerate(twins):
        dense[row, : twin.length] = torch.cat(twin.ids)
        present[row, : twin.length] = 1
    found = _asked(family, dense, present, grids)
    positions = torch.zeros(4, *input_ids.shape, dtype=torch.long)
    positions[0] = (mask.cpu().long().cumsum(-1) - 1).masked_fill(~real, 0)
    for row, twin in enumerate(twins):
        if text_after == "published":
            _after_the_largest(found[:, row], twin)
        positions[1:, row, real[row]] = found[:, row, torch.cat(twin.columns)]
    return positions.to(input_ids.device)


def _after_the_largest(positions: torch.Tensor, twin: _Twin) -> None:
    """Moves what follows each video of positions (3, L) to one after its largest, where it stands before that."""
    for start, end in twin.videos:
        if end < twin.length:
            missing = int(positions[:, start:end].max()) + 1 - int(positions[:, end].max())
            positions[:, end : twin.length] += max(missing, 0)


class _Grids:
    """Of all prompts, in order: (1, 3) grids in patches, and seconds of a tubelet."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.videos: list[torch.Tensor] = []
        self.seconds: list[float] = []


def _twin(
    family: Family, ids: torch.Tensor, items: Sequence[Media], grids: _Grids, merge: int, run_per_tubelet: bool
) -> _Twin:
    twin, done = _Twin(), 0
    slots = family.is_visual(ids).nonzero().flatten().tolist()
    seen = 0  # placeholders so far
    for item in items:
        _note(item, grids, merge, run_per_tubelet)
        first = 0  # of the medium's tokens
        for run in item.runs:
            start = slots[seen]
            twin.text(ids[done:start])
            if item.token_map is None:
                twin.text(ids[start : start + run])
            else:
                cells = dense_cells(item.token_map)[first : first + run]
                dense = math.prod(_whole_cells(item.token_map))
                if not run_per_tubelet:
                    counts = torch.tensor(item.token_map.counts)
                    cells = cells + torch.arange(len(counts)).repeat_interleave(counts) * dense
                    dense *= len(counts)
                twin.video(family.video_token_id, dense, cells)
            first, seen, done = first + run, seen + run, start + run
    twin.text(ids[done:])
    return twin


def _note(item: Media, grids: _Grids, merge: int, run_per_tubelet: bool) -> None:
    """Adds what the base is told of a medium."""
    if item.token_map is None:
        for name, known in (("image_grid_thw", grids.images), ("video_grid_thw", grids.videos)):
            if name in item.dense:
                known.append(item.dense[name].cpu())
        if "video_grid_thw" in item.dense:
            grids.seconds += item.dense.get("second_per_grid_ts", torch.ones(1)).tolist()
        return
    video = item.token_map
    shown = sum(count > 0 for count in video.counts) if run_per_tubelet else len(video.counts)
    height, width = _whole_cells(video)
    if item.runs:
        grids.videos.append(torch.tensor([[shown, height * merge, width * merge]]))
        grids.seconds.append(video.tubelet * (video.interval or 0.5))


def _asked(family: Family, ids: torch.Tensor, mask: torch.Tensor, grids: _Grids) -> torch.Tensor:
    """(3, B, L) of the base's own function."""
    kinds = torch.zeros_like(ids)
    kinds[ids == family.image_token_id] = 1
    kinds[ids == family.video_token_id] = 2
    arguments: dict[str, Any] = {
        "mm_token_type_ids": kinds,
        "image_grid_thw": torch.cat(grids.images) if grids.images else None,
        "video_grid_thw": torch.cat(grids.videos) if grids.videos else None,
        "second_per_grid_ts": torch.tensor(grids.seconds) if grids.seconds else None,
        "attention_mask": mask,
    }
    ask = family.base.model.get_rope_index
    known = inspect.signature(ask).parameters
    positions, _ = ask(ids, **{name: value for name, value in arguments.items() if name in known})
    return positions[-3:]
