"""Budgets: the share that a frame may keep, and the predicted loss at which it may stop earlier.

docs/specification.md, "Budgets", says how they are drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from ...common.errors import InputError
from ..ratio import per_frame
from .config import BudgetConfig

Requirement = float | Sequence | torch.Tensor


def requirement_per_frame(requirement: Requirement, batch: int, frames: int, device: torch.device) -> torch.Tensor:
    """Loss requirement (number, nested list or tensor broadcastable to (B, T')) -> (B, T') float32."""
    values = per_frame(requirement, batch, frames, "loss requirement").to(device)
    if bool(values.isnan().any()):
        raise InputError("loss requirement is not a number (nan)")
    return values


def for_tiles(values: Any, clips: int, frames: int, tiles: int) -> Any:
    """A ratio or requirement for clips, given to each tile of its clip; single numbers and None stay as they are."""
    if values is None or isinstance(values, (int, float)):
        return values
    return per_frame(values, clips, frames, "ratio or requirement").repeat_interleave(tiles, dim=0)


def draw_ratio(config: BudgetConfig, training: bool) -> float:
    """Ratio of a clip by the configured strategy."""
    strategy = config.ratio_training if training else config.ratio_inference
    if strategy == "fixed":
        return config.ratio
    if strategy == "uniform":
        return random.uniform(*config.ratio_range)
    low, high = config.exponential_range
    while True:
        value = random.expovariate(config.ratio_lambda)
        if low <= value <= high:
            return value


def draw_requirement(config: BudgetConfig, training: bool) -> float:
    """Requirement of a call by the configured strategy."""
    strategy = config.requirement_training if training else config.requirement_inference
    return config.requirement if strategy == "fixed" else random.uniform(*config.requirement_range)


def dirichlet_ratios(ratio: float, alpha: float | str, frames: int) -> torch.Tensor:
    """Splits ratio * frames over the frames by a Dirichlet sample; (frames,) clamped to [0, 1]."""
    weights = [float(part) for part in alpha.split(",")] if isinstance(alpha, str) else [float(alpha)]
    if len(weights) == 1:
        weights = weights * frames
    if len(weights) != frames or min(weights) <= 0 or not math.isfinite(sum(weights)):
        raise InputError(f"dirichlet alpha {alpha!r} needs one positive number, or one per frame ({frames})")
    sample = torch.distributions.Dirichlet(torch.tensor(weights)).sample()
    return (sample * ratio * frames).clamp(0, 1)
