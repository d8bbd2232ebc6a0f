"""What a reconstruction model that is trained alone rebuilds frames from, where no labels say it."""

from __future__ import annotations

import torch

from ..common.errors import InputError
from ..gaze.autogaze.budget import dirichlet_ratios, draw_ratio
from ..gaze.autogaze.config import BudgetConfig
from ..gaze.grid import PatchGrid
from ..gaze.ratio import patches_per_frame
from ..gaze.selection import GazingInfo
from ..gaze.selectors.baselines import random_patches


def check_budget(budget: BudgetConfig) -> None:
    """Raises InputError for budgets that only a gaze model can have."""
    if budget.frame_training == "self":
        raise InputError("the frame ratio 'self' is what a gaze model wants to keep; random patches need another one")


def random_selection(
    budget: BudgetConfig, grid: PatchGrid, seeds: list[int], frames: int, device: torch.device
) -> GazingInfo:
    """Random patches of a clip for each seed, as many as the strategies of training draw; all clips of a call have the
    same budgets. A clip's patches depend on its seed and the budgets alone."""
    ratio = draw_ratio(budget, training=True)
    shares = dirichlet_ratios(ratio, budget.dirichlet_alpha, frames) if budget.frame_training == "dirichlet" else ratio
    budgets = patches_per_frame(shares, grid.size, len(seeds), frames)
    return random_patches(budgets, [torch.Generator().manual_seed(seed) for seed in seeds], grid, device)
