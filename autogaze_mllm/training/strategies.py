"""How budgets are drawn, in one word of text each, and what that makes of a gaze model's configuration.

`fixed:0.25`, `uniform:0:0.5`, `dirichlet:10,3,3,3`, ...: the kind, then its numbers. A number alone is a fixed one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo

from ..common.errors import InputError

if TYPE_CHECKING:  # torch is behind it
    from ..gaze.autogaze.config import BudgetConfig

Phase = Literal["training", "inference"]


@dataclass(frozen=True)
class Strategy:
    """A kind and its numbers; weights: a list with commas, as `dirichlet` may have it."""

    kind: str
    numbers: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()


RATIO = {"fixed": "R", "uniform": "A:B", "exponential": "LAMBDA:A:B"}
FRAMES = {"uniform": "", "self": "", "dirichlet": "ALPHA or dirichlet:A,B,... for each frame"}
REQUIREMENT = {"none": "", "fixed": "LOSS", "uniform": "A:B"}


def read_strategy(text: str, kinds: Mapping[str, str], option: str) -> Strategy:
    """Raises InputError, naming the option, for a kind that is unknown or numbers that do not fit it."""
    kind, _, rest = text.strip().partition(":")
    if kind not in kinds and "fixed" in kinds and _number(kind) is not None:
        kind, rest = "fixed", text.strip()
    forms = ", ".join(name + (f":{numbers}" if numbers else "") for name, numbers in kinds.items())
    if kind not in kinds:
        raise InputError(f"{option} {text!r}: unknown strategy {kind!r}; known: {forms}")
    listed = kind == "dirichlet"
    numbers = [_number(part) for part in rest.split("," if listed else ":")] if rest else []
    expected = kinds[kind].count(":") + 1 if kinds[kind] else 0
    if None in numbers or (len(numbers) < 1 if listed else len(numbers) != expected):
        form = f"{kind}:{kinds[kind]}" if kinds[kind] else kind
        raise InputError(f"{option} {text!r}: expected numbers as in {form}")
    values = tuple(value for value in numbers if value is not None)
    if listed and min(values) <= 0:
        raise InputError(f"{option} {text!r}: alphas must be above 0")
    if kind in ("uniform", "exponential") and values and not 0 <= values[-2] <= values[-1]:
        raise InputError(f"{option} {text!r}: {values[-2]:g} to {values[-1]:g} is no range of numbers from 0 on")
    if min(values, default=0.0) < 0:
        raise InputError(f"{option} {text!r}: must not be below 0")
    if kinds is RATIO and (values[-1] > 1 or (kind == "fixed" and values[0] == 0)):
        raise InputError(f"{option} {text!r}: a ratio must lie in (0, 1]")
    return Strategy(kind, () if listed else values, values if listed else ())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _checked(kinds: Mapping[str, str]) -> BeforeValidator:
    """Text (or a number, a fixed one) that one of `kinds` understands."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value:g}"
        if isinstance(value, str):
            read_strategy(value, kinds, f"--{(info.field_name or '').replace('_', '-')}")
        return value

    return BeforeValidator(check)


RatioText = Annotated[str, _checked(RATIO)]
FrameRatioText = Annotated[str, _checked(FRAMES)]
RequirementText = Annotated[str, _checked(REQUIREMENT)]


def with_strategies(
    budget: BudgetConfig, phase: Phase, ratio: str | None, frame_ratio: str | None, requirement: str | None
) -> BudgetConfig:
    """The budgets with other strategies in one phase; None leaves one as it is.

    A configuration holds the numbers of each kind once, for both phases: where both have the same kind, the numbers
    given here are those of both.
    """
    changes: dict[str, Any] = {}
    if ratio is not None:
        chosen = read_strategy(ratio, RATIO, "ratio")
        changes[f"ratio_{phase}"] = chosen.kind
        if chosen.kind == "fixed":
            changes["ratio"] = chosen.numbers[0]
        elif chosen.kind == "uniform":
            changes["ratio_range"] = chosen.numbers
        else:
            changes |= {"ratio_lambda": chosen.numbers[0], "exponential_range": chosen.numbers[1:]}
    if frame_ratio is not None:
        chosen = read_strategy(frame_ratio, FRAMES, "frame ratio")
        changes[f"frame_{phase}"] = chosen.kind
        if len(chosen.weights) == 1:
            changes["dirichlet_alpha"] = chosen.weights[0]
        elif chosen.weights:
            changes["dirichlet_alpha"] = ",".join(f"{weight:g}" for weight in chosen.weights)
    if requirement is not None:
        chosen = read_strategy(requirement, REQUIREMENT, "requirement")
        changes[f"use_requirement_{phase}"] = chosen.kind != "none"
        if chosen.kind != "none":
            changes[f"requirement_{phase}"] = chosen.kind
            changes |= {"requirement" if chosen.kind == "fixed" else "requirement_range": _one_or_all(chosen.numbers)}
    return dataclasses.replace(budget, **changes)


def _one_or_all(numbers: tuple[float, ...]) -> float | tuple[float, ...]:
    return numbers[0] if len(numbers) == 1 else numbers


def check_frames(budget: BudgetConfig, phase: Phase, steps: int, option: str) -> None:
    """Raises InputError where there is an alpha for each frame, and clips have another number of frames."""
    alpha = budget.dirichlet_alpha
    if getattr(budget, f"frame_{phase}") != "dirichlet" or not isinstance(alpha, str) or "," not in alpha:
        return
    count = len(alpha.split(","))
    if count != steps:
        raise InputError(f"{option}: dirichlet has {count} alphas, clips {steps} frames: give one, or one for each")
