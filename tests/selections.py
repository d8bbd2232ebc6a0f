"""Random selections in the interchange form, as ragged as they may be."""

from __future__ import annotations

import torch

from autogaze_mllm.gaze.grid import PatchGrid

Kept = list[list[list[int]]]  # clip, frame, positions in the order of choice


def random_kept(grid: PatchGrid, clips: int, frames: int, most: int, seed: int = 0) -> Kept:
    """Up to `most` positions per frame, none in some; not sorted."""
    generator = torch.Generator().manual_seed(seed)

    def frame() -> list[int]:
        count = int(torch.randint(-1, most + 1, (), generator=generator))
        return torch.randperm(grid.size, generator=generator)[: max(count, 0)].tolist()

    return [[frame() for _ in range(frames)] for _ in range(clips)]


def as_info(grid: PatchGrid, kept: Kept, more_padding: int = 0) -> dict[str, torch.Tensor]:
    """Frames are filled to the longest clip and `more_padding` beyond; the filling lies anywhere and means nothing."""
    generator = torch.Generator().manual_seed(1)
    frames = len(kept[0])
    counts = [max(len(clip[t]) for clip in kept) + more_padding for t in range(frames)]
    positions = torch.randint(-5, grid.size * frames, (len(kept), sum(counts)), generator=generator)
    padded = torch.ones_like(positions, dtype=torch.bool)
    for row, clip in enumerate(kept):
        for t, frame in enumerate(clip):
            slots = torch.randperm(counts[t], generator=generator)[: len(frame)].sort().values + sum(counts[:t])
            positions[row, slots] = torch.tensor(frame, dtype=torch.long) + t * grid.size
            padded[row, slots] = False
    return {"gazing_pos": positions, "if_padded_gazing": padded, "num_gazing_each_frame": torch.tensor(counts)}
