"""The share of its patches that a frame may keep, and how many patches that are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..common.errors import InputError

Ratio = float | Sequence[float] | torch.Tensor


def per_frame(values: float | Sequence | torch.Tensor, batch: int, frames: int, name: str) -> torch.Tensor:
    """Number, nested list or tensor -> (batch, frames) float32; InputError when it does not fit."""
    try:
        return torch.as_tensor(values, dtype=torch.float32).expand(batch, frames)
    except (RuntimeError, TypeError, ValueError):
        shape = f" of shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else ""
        raise InputError(
            f"{name}{shape} does not fit {batch} clips of {frames} frames: give one number, one per frame, or (B, T)"
        ) from None


def patches_per_frame(ratio: Ratio, size: int, batch: int, frames: int) -> torch.Tensor:
    """Ratio (number, one per frame, or broadcastable to (B, T')) -> budgets (B, T') int64 on the host, at least 1.

    The product is taken in float32 and truncated, as published.
    """
    values = per_frame(ratio, batch, frames, "gazing ratio").cpu()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError(f"gazing ratio must lie in (0, 1], got {ratio}")
    return (values * size).long().clamp(min=1)
