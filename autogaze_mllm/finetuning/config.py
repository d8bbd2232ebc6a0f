"""FinetuneConfig: everything that a fine-tuning is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..common.errors import InputError
from .data.dataset import TooLong
from .parts import PARTS, PRESETS, LoraPlan, PartPlan, RolloutPlan

Precision = Literal["auto", "bf16", "fp32"]
REPORTS = ("none", "tensorboard", "wandb")


@dataclass(frozen=True)
class FinetuneConfig:
    """data, eval_data: json or jsonl files. output: where checkpoints and the result go. media_root: what relative
    media paths start from (default: each data file's folder).

    parts: what is trained, for tower, projector and llm, and for gaze unless that is frozen; see parts.PRESETS.
    rollouts: how gaze is trained, where it is. batch_size: samples (packs, with packing)
    per process and step; accumulate: such steps per update. warmup: share of the updates. max_length: tokens of a
    sample, or of a pack. too_long: what happens to longer ones. max_steps: updates, instead of epochs. precision: auto
    is bf16 where the device has it. deepspeed: preset name or json path. save_steps, eval_steps: updates between them
    (0: never; evaluation then happens once, at the end). eval_benchmark: "NAME=FOLDER", asked at every evaluation;
    eval_limit: only its first questions (0: all). resume: "auto" takes the latest checkpoint in `output`, if
    there is one; a path takes that one. cache: folder of the gazed videos (default: one for fine-tuning in the user's
    cache), which grows as needed.
    """

    data: tuple[str, ...]
    output: str
    media_root: str | None = None
    eval_data: tuple[str, ...] = ()
    parts: Mapping[str, PartPlan] = field(default_factory=lambda: PRESETS["sft"])
    lora: LoraPlan = field(default_factory=LoraPlan)
    rollouts: RolloutPlan = field(default_factory=RolloutPlan)
    epochs: float = 1.0
    max_steps: int = 0
    batch_size: int = 1
    accumulate: int = 1
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    max_length: int = 16384
    too_long: TooLong = "error"
    packing: bool = False
    group_by_length: bool = True
    precision: Precision = "auto"
    gradient_checkpointing: bool = True
    deepspeed: str | None = None
    save_steps: int = 500
    save_total_limit: int = 2
    eval_steps: int = 0
    eval_benchmark: str | None = None
    eval_limit: int = 0
    log_steps: int = 10
    report: str = "none"
    workers: int = 2
    seed: int = 42
    cpu: bool = False
    resume: str | None = None
    cache: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("no data file was given")
        if self.parts.keys() | {"gaze"} != {*PARTS, "gaze"}:
            got = ", ".join(self.parts)
            raise InputError(f"parts must be {', '.join(PARTS)} and, where it is trained, gaze; got {got}")
        object.__setattr__(self, "parts", {**self.parts, "gaze": self.parts.get("gaze", PartPlan())})
        if all(plan.mode == "off" for plan in self.parts.values()):
            raise InputError("nothing is switched on: train the projector, the tower, the LLM or the gaze model")
        if self.trains_gaze and self.packing:
            raise InputError("packing does not go with training gaze: how long samples are is not known beforehand")
        for name, least in {
            "max_steps": 0,
            "batch_size": 1,
            "accumulate": 1,
            "max_length": 1,
            "save_steps": 0,
            "save_total_limit": 1,
            "eval_steps": 0,
            "eval_limit": 0,
            "log_steps": 1,
            "workers": 0,
            "seed": 0,
        }.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not self.epochs > 0:
            raise InputError(f"epochs must be above 0, got {self.epochs}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a share of the updates, in [0, 1), got {self.warmup}")
        if self.weight_decay < 0 or self.clip < 0:
            raise InputError("weight_decay and clip must be at least 0")
        for name, known in {
            "too_long": ("error", "truncate"),
            "precision": ("auto", "bf16", "fp32"),
            "report": REPORTS,
        }.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("eval_steps", "eval_benchmark"):
            if getattr(self, name) and not self.eval_data:
                raise InputError(f"{name} needs eval_data")

    @property
    def trains_gaze(self) -> bool:
        return self.parts["gaze"].mode != "off"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
