"""GazedVideo: what is left of a video after gazing, packed without padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import InputError
from .grid import PatchGrid
from .info import read_selection
from .patches import gather_patches


@dataclass
class GazedVideo:
    """Kept patches of all clips, in the order clip, frame, choice.

    patches: (N, 3 * patch * patch) normalised for the tower. positions: (N,) index within the frame on `grid`.
    frame_counts: (F,) kept patches of every frame of every clip. clip_frames: (C,) frames of each clip; sums to F.
    timestamps: (F,) seconds. stats: numbers about how it was made (frames, seconds per stage, ...).
    """

    patches: torch.Tensor
    positions: torch.Tensor
    frame_counts: torch.Tensor
    clip_frames: torch.Tensor
    grid: PatchGrid
    timestamps: torch.Tensor
    stats: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if int(self.frame_counts.sum()) != len(self.positions) or len(self.patches) != len(self.positions):
            raise InputError(
                f"gazed video: {len(self.patches)} patches, {len(self.positions)} positions and counts that sum to "
                f"{int(self.frame_counts.sum())} do not fit together"
            )
        if int(self.clip_frames.sum()) != len(self.frame_counts):
            raise InputError("gazed video: clip_frames do not add up to the number of frames")

    @classmethod
    def from_info(
        cls, pixels: torch.Tensor, info: Mapping[str, Any], grid: PatchGrid, timestamps: torch.Tensor | None = None
    ) -> GazedVideo:
        """From normalised pixels (B, T, 3, H, W) and a selection in the interchange form; padding is dropped."""
        batch, frames = pixels.shape[:2]
        selection = read_selection(info, grid, "the tower")
        if (len(selection.index), len(selection.counts)) != (batch, frames):
            raise InputError(
                f"gazing_info has {len(selection.index)} clips x {len(selection.counts)} frames, the pixels have "
                f"{batch} x {frames}"
            )
        keep = selection.keep.to(pixels.device)
        rows, columns = keep.nonzero(as_tuple=True)
        positions = selection.index.to(pixels.device)[rows, columns]
        frame = selection.frame.to(pixels.device)[columns]
        flat = rows * frames + frame
        return cls(
            gather_patches(pixels.flatten(0, 1), grid, flat, positions),
            positions,
            torch.bincount(flat, minlength=batch * frames),
            torch.full((batch,), frames, device=pixels.device),
            grid,
            torch.zeros(batch * frames) if timestamps is None else timestamps,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[GazedVideo]) -> GazedVideo:
        """Clips of several videos or chunks one after the other, without their stats. All grids must be the same."""
        if not parts:
            raise InputError("nothing to put together: no clip was gazed")
        for part in parts[1:]:
            parts[0].grid.check_same(part.grid, "the first part", "another part")
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("patches", "positions", "frame_counts", "clip_frames", "timestamps")
        }
        return cls(**joined, grid=parts[0].grid)

    def __len__(self) -> int:
        """Kept patches."""
        return len(self.positions)

    @property
    def total_patches(self) -> int:
        """Patches that the grid has over all frames."""
        return self.grid.size * len(self.frame_counts)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GazedVideo:
        """Everything on `device`, the patches in `dtype`."""
        moved = {name: getattr(self, name).to(device=device) for name in ("positions", "frame_counts", "clip_frames")}
        return dataclasses.replace(self, patches=self.patches.to(device=device, dtype=dtype), **moved)
