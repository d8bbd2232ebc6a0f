"""What every selector answers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from ..autogaze.budget import Ratio
from ..grid import PatchGrid
from ..selection import GazingInfo


@runtime_checkable
class Selector(Protocol):
    @property
    def default_loss(self) -> float | None:
        """The stop rule used when none is given, in the selector's own unit (None: no stop rule)."""
        ...

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """frames (B, T, 3, H, W) in [0, 1] at the grid's largest scale -> positions on `grid`.

        ratio: share of the patches that a frame may keep, one number or one per frame. loss: stop rule or None.
        A clip's result depends on that clip alone.
        """
        ...
