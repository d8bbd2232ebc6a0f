"""Learning rate and sampling temperature over the optimizer steps (docs/specification.md, "Schedules")."""

from __future__ import annotations

from typing import Literal

from ..common.errors import InputError

Schedule = Literal["linear", "linear_w_warmup", "constant"]


def learning_rate(schedule: Schedule, step: int, total: int, peak: float, floor: float = 0.0) -> float:
    """Rate used by optimizer step `step` (from 0) of `total`.

    linear: from peak to floor, then constant. linear_w_warmup: from 0 up over the first tenth, then down to 0 at
    `total` (floor unused). constant: peak.
    """
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak + (floor - peak) * min(step / max(total, 1), 1.0)
    if schedule == "linear_w_warmup":
        warmup = total // 10
        if step < warmup:
            return peak * step / warmup
        return peak * max(0.0, (total - step) / max(total - warmup, 1))
    raise InputError(f"schedule {schedule!r} is not known; known: linear, linear_w_warmup, constant")


def temperature(step: int, total: float, start: float, end: float) -> float:
    """start * (end / start) ** (step / total): geometric from start to end."""
    return start * (end / start) ** (step / total)
