"""GazingInfo: the interchange form of a selection, with the names that other AutoGaze tools speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from ..common.errors import InputError
from .grid import PatchGrid, mask_to_positions, positions_to_masks, sides_of

NEEDED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")  # what a selection consists of


@dataclass
class GazingInfo(ModelOutput):
    """What was selected. Padded: every row of a frame has the length of the longest one.

    gazing_pos: (B, n) int64, frame * positions_per_frame + index within the frame; meaningless where padded.
    if_padded_gazing: (B, n) bool, True where the entry is padding.
    num_gazing_each_frame: (T,) int64, entries of each frame, padding included; their sum is n.
    gazing_mask: per scale (B, T, patches of the scale), 1 where selected.
    num_gazing_each_row: (B, T) entries that the row produced itself (the rest of the frame is filling).
    drawn: (B, n) the index drawn for each entry, also where the stop rule then dropped it (N where none was drawn).
    task_loss_requirement: (B, T) or None.
    grid: the grid that the positions belong to. Readers must check it (`PatchGrid.check_same`).
    tiles: for other resolutions, the selection of every tile on the model's own grid, in generation order.
    state: streaming state after the last frame (`GazeState`), when asked for.
    """

    gazing_pos: torch.Tensor
    if_padded_gazing: torch.Tensor | None = None
    num_gazing_each_frame: torch.Tensor | None = None
    gazing_mask: list[torch.Tensor] | None = None
    num_gazing_each_row: torch.Tensor | None = None
    drawn: torch.Tensor | None = None
    task_loss_requirement: torch.Tensor | None = None
    has_task_loss_requirement: bool | None = None
    scales: list[Any] | None = None
    num_vision_tokens_each_frame: int | None = None
    frame_sampling_rate: int | None = None
    grid: PatchGrid | None = None
    tiles: GazingInfo | None = None
    state: Any = None

    def to(self, device: torch.device | str) -> GazingInfo:
        """The same with all of its tensors, those of `tiles` and `state` too, on `device`."""

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(part) for part in value]
            return value.to(device) if hasattr(value, "to") else value

        return GazingInfo(**{name: moved(value) for name, value in self.items()})


@dataclass(frozen=True)
class Selection:
    """A GazingInfo taken apart and checked, the form that code works on.

    index: (B, n) index within the frame, 0 where padded; keep: (B, n) True for real entries;
    frame: (n,) frame number of each column; counts: entries of each frame.
    """

    index: torch.Tensor
    keep: torch.Tensor
    frame: torch.Tensor
    counts: list[int]


def read_selection(info: Mapping[str, Any], grid: PatchGrid, reader: str) -> Selection:
    """Checks `info` against `grid` and takes it apart. `reader` names who reads it, for the error.

    Raises InputError when something is missing, the grids differ, the counts do not add up or an index lies outside its
    frame.
    """
    if missing := [name for name in NEEDED if info.get(name) is None]:
        raise InputError(f"gazing_info for {reader} lacks {', '.join(missing)}")
    theirs = info.get("grid")
    if theirs is not None:
        grid.check_same(theirs, reader, "gazing_info")
    elif info.get("num_vision_tokens_each_frame") not in (None, grid.size):
        raise InputError(
            f"grid mismatch: {reader} uses {grid}, gazing_info counts {info['num_vision_tokens_each_frame']} a frame"
        )
    positions = info["gazing_pos"]
    padded = info["if_padded_gazing"].bool()
    counts = [int(count) for count in info["num_gazing_each_frame"]]
    if positions.shape != padded.shape or positions.shape[1] != sum(counts):
        raise InputError(
            f"gazing_info: gazing_pos {tuple(positions.shape)}, if_padded_gazing {tuple(padded.shape)} and "
            f"num_gazing_each_frame (sum {sum(counts)}) do not fit together"
        )
    frame = frame_of_entries(counts, positions.device)
    index = (positions.long() - frame * grid.size).masked_fill(padded, 0)
    bad = (index < 0) | (index >= grid.size)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"gazing_info: position {int(positions[row, column])} of row {row} lies outside frame {int(frame[column])} "
            f"of {reader} with {grid}; positions count on over the clip: frame * {grid.size} + index"
        )
    return Selection(index, ~padded, frame, counts)


def frame_of_entries(counts: list[int], device: torch.device) -> torch.Tensor:
    """(n,) the frame of each entry, of frames with so many each; made on the host, so that no device is waited for."""
    frames = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
    return frames.to(device, non_blocking=True)


def build_info(
    ids: torch.Tensor, keep: torch.Tensor, counts: list[int], grid: PatchGrid, *, pad_id: int, **extra: Any
) -> GazingInfo:
    """Index within the frame (B, n), real flags (B, n) and entries per frame -> interchange form.

    pad_id: the index that padded entries carry (published: N for the model's own grid, -1 for other resolutions).
    """
    device = ids.device
    frame = frame_of_entries(counts, device)
    positions = ids.masked_fill(~keep, pad_id) + frame * grid.size
    return GazingInfo(
        gazing_pos=positions,
        if_padded_gazing=~keep,
        num_gazing_each_frame=torch.tensor(counts).to(device, non_blocking=True),
        gazing_mask=positions_to_masks(ids.masked_fill(~keep, 0), keep, frame, len(counts), grid),
        scales=list(sides_of(grid)),
        num_vision_tokens_each_frame=grid.size,
        grid=grid,
        **extra,
    )


def info_of_masks(masks: torch.Tensor, grid: PatchGrid, **extra: Any) -> GazingInfo:
    """Kept patches (B, T, N) 0/1 -> interchange form, each frame in raster order. extra: more fields of it."""
    found = [mask_to_positions(masks[:, t]) for t in range(masks.shape[1])]
    ids = torch.cat([index.clamp(min=0) for index, _ in found], dim=1)
    keep = ~torch.cat([padded for _, padded in found], dim=1)
    return build_info(ids, keep, [index.shape[1] for index, _ in found], grid, pad_id=-1, **extra)


def in_raster_order(info: GazingInfo, grid: PatchGrid) -> GazingInfo:
    """The same selection, each frame in raster order instead of the order of choice. What belongs to single choices,
    such as predicted losses, is left out."""
    assert info.gazing_mask is not None
    limits = {"has_task_loss_requirement": bool(info.get("has_task_loss_requirement"))}
    return info_of_masks(torch.cat(info.gazing_mask, dim=2), grid, **limits)


def with_whole_scale(info: GazingInfo, grid: PatchGrid, frames: Sequence[int], scale: int) -> GazingInfo:
    """The same selection and, in these frames, all patches of one scale."""
    assert info.gazing_mask is not None
    masks = [mask.clone() for mask in info.gazing_mask]
    masks[scale][:, list(frames)] = 1
    return info_of_masks(torch.cat(masks, dim=2), grid)
