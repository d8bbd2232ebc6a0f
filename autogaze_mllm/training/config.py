"""Settings of a training run, checked where they are made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..common.errors import InputError
from .schedules import Schedule

Algorithm = Literal["ntp", "grpo"]
LogProbabilities = Literal["matched", "published"]
Optimizer = Literal["adam", "adamw", "sgd"]
Precision = Literal["no", "bf16"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"training settings: {message}")


@dataclass(frozen=True)
class SearchSettings:
    """How labels are searched while training, where no label files are given.

    target: range of the loss at which a frame is done; each clip draws its own, log-uniformly. max_patches: of a frame
    at most. disturbance: largest share of random picks; each clip draws its own share. sharpness, floor: a label is a
    distribution over the patches, proportional to (gain + floor) ** sharpness, so patches that are as good share it and
    gains far below `floor` teach nothing; sharpness 0: the greedy pick alone.
    """

    target: tuple[float, float] = (0.06, 0.8)
    max_patches: int = 120
    disturbance: float = 0.2
    sharpness: float = 4.0
    floor: float = 3e-4

    def __post_init__(self) -> None:
        _require(0 < self.target[0] <= self.target[1], f"target losses {self.target} are not a range above 0")
        _require(self.max_patches >= 1, f"max_patches must be at least 1, got {self.max_patches}")
        _require(0 <= self.disturbance < 1, f"disturbance must lie in [0, 1), got {self.disturbance}")
        _require(self.sharpness >= 0 and self.floor > 0, "sharpness must be at least 0 and floor above 0")


@dataclass(frozen=True)
class TrainingSettings:
    """batch_size: clips of an optimizer step over all processes; micro_batch: clips that a process works on at a time.

    log_probabilities: `matched` are those of the distribution that generation samples from (repeat mask, end-token ban,
    temperature) at generation's positions; `published` are those of the published trainer.
    convolution_lr: of the gaze model's spatial convolutions, as a share of lr (1: as published).
    hint_weight: of the hints (see `hints`) at the start, in NTP with searched labels; it fades to 0.
    relative_prediction: 0, or r: an error of the predicted loss counts relative to that prediction + r (NTP).
    discount, group_size, temperature, top_k: GRPO. train_gaze, train_task: what learns.
    """

    algorithm: Algorithm = "ntp"
    steps: int = 1000
    batch_size: int = 8
    micro_batch: int = 8
    optimizer: Optimizer = "adamw"
    lr: float = 5e-4
    min_lr: float = 0.0
    convolution_lr: float = 0.02
    schedule: Schedule = "linear_w_warmup"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    precision: Precision = "no"
    log_probabilities: LogProbabilities = "matched"
    predict_loss: bool = True
    prediction_weight: float = 1.0
    relative_prediction: float = 0.0
    hint_weight: float = 0.3
    search: SearchSettings = SearchSettings()
    group_size: int = 8
    discount: float = 0.995
    temperature: tuple[float, float] = (1.0, 1.0)
    top_k: int | None = None
    train_gaze: bool = True
    train_task: bool = False
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    val_every: int = 500
    val_clips: int = 16
    val_ratio: float = 0.25
    val_loss: float = 0.2
    tracker: Literal["tensorboard", "wandb", "none"] = "none"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("algorithm", Algorithm),
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("precision", Precision),
            ("log_probabilities", LogProbabilities),
        ):
            value = getattr(self, name)
            _require(
                value in get_args(allowed), f"{name} {value!r} is not known; known: {', '.join(get_args(allowed))}"
            )
        for name in ("steps", "batch_size", "micro_batch", "save_every", "keep", "val_every", "group_size"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(self.algorithm != "grpo" or self.group_size >= 2, "a group needs at least 2 rollouts to compare")
        _require(self.lr > 0 and 0 <= self.min_lr <= self.lr, f"lr {self.lr} and min_lr {self.min_lr} do not fit")
        _require(self.clip_norm is None or self.clip_norm > 0, f"clip_norm must be above 0, got {self.clip_norm}")
        _require(0 < self.discount <= 1, f"discount must lie in (0, 1], got {self.discount}")
        _require(min(self.temperature) > 0, f"temperatures must be above 0, got {self.temperature}")
        _require(0 < self.val_ratio <= 1, f"val_ratio must lie in (0, 1], got {self.val_ratio}")
        _require(self.val_loss >= 0, f"val_loss must be at least 0 (0: no stop rule), got {self.val_loss}")
        _require(self.relative_prediction >= 0, f"relative_prediction is {self.relative_prediction}, below 0")
        _require(self.train_gaze or self.train_task, "nothing is to be trained")

    @property
    def hinted(self) -> bool:
        """Whether a head for hints is trained along."""
        return self.algorithm == "ntp" and self.hint_weight > 0 and self.search.sharpness > 0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def accumulation(self, processes: int) -> tuple[int, int]:
        """(clips of a process at a time, how often before an optimizer step)."""
        _require(
            self.batch_size % processes == 0, f"batch_size {self.batch_size} cannot be shared by {processes} processes"
        )
        local = self.batch_size // processes
        micro = min(local, self.micro_batch)
        _require(local % micro == 0, f"{local} clips of a process are not a multiple of micro_batch {micro}")
        return micro, local // micro
