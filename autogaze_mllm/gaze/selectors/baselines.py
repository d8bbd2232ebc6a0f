"""Selectors that do not look: every patch, and random ones."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch

from ...common.storage.json_text import Fields
from ..grid import PatchGrid
from ..ratio import Ratio, patches_per_frame
from ..selection import GazingInfo, build_info, info_of_masks
from .base import Selector


class AllSelector(Selector):
    """Keeps every patch of every scale; ratio and loss do not limit it."""

    name = "all"
    thread_safe = True

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        batch, steps = frames.shape[:2]
        ids = torch.arange(grid.size, device=frames.device).repeat(steps).expand(batch, -1)
        return build_info(ids, torch.ones_like(ids, dtype=torch.bool), [grid.size] * steps, grid, pad_id=-1)


class RandomSelector(Selector):
    """Patches drawn without looking, the baseline to beat. The seed and the clip's content decide, nothing else."""

    name = "random"
    thread_safe = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed}

    def store(self, folder: Path) -> dict[str, Any]:
        return {**super().store(folder), "seed": self.seed}

    @classmethod
    def restored(cls, entry: dict[str, Any]) -> RandomSelector:
        return cls(Fields(entry, "gaze").get("seed", int))

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        batch, steps = frames.shape[:2]
        budgets = patches_per_frame(ratio, grid.size, batch, steps)
        thumbs = (frames[..., ::16, ::16].float() * 255).round().to("cpu", torch.uint8)
        seeds = [zlib.crc32(thumb.numpy().tobytes(), self.seed & 0xFFFFFFFF) for thumb in thumbs]
        return random_patches(budgets, [torch.Generator().manual_seed(seed) for seed in seeds], grid, frames.device)


def random_patches(
    budgets: torch.Tensor, generators: list[torch.Generator], grid: PatchGrid, device: torch.device
) -> GazingInfo:
    """budgets: (B, T) patches of each frame; a generator for each clip, on the CPU. In ascending order."""
    batch, steps = budgets.shape
    masks = torch.zeros(batch, steps, grid.size)
    for row, generator in enumerate(generators):
        for t in range(steps):
            kept = torch.randperm(grid.size, generator=generator)[: int(budgets[row, t])]
            masks[row, t, kept] = 1
    return info_of_masks(masks.to(device), grid)
