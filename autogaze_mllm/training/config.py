"""Settings of training a gaze model and of its labels, checked where they are made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from ..common.errors import InputError
from ..common.fields import Number, Span, WholeSpan, setting, settings
from .schedules import Schedule
from .strategies import FrameRatioText, RatioText, RequirementText, check_frames, with_strategies

if TYPE_CHECKING:
    from ..gaze.autogaze.config import BudgetConfig
    from ..gaze.grid import PatchGrid

Algorithm = Literal["ntp", "grpo"]
LogProbabilities = Literal["matched", "published"]
Optimizer = Literal["adam", "adamw", "sgd"]
Precision = Literal["no", "bf16"]
ClipStart = Literal["auto", "random", "first"]
Selections = Literal["gaze", "random"]

CLIPS, STEPS, LOSSES, BUDGETS, WATCH = "clips", "steps", "losses", "budgets", "watch"  # groups of options
MOSAIC_LOSS = 0.2  # of the mosaic, at about 25 dB
VAL_RATIO = "0.25"
OWN = "default: the model's own"
VIDEOMAE_LOSS = 0.7  # of a VideoMAE, the published stop rule
# Labels go on below the stop rule, so that the model learns what comes after it, too.
MOSAIC_LABEL_LOSS, VIDEOMAE_LABEL_LOSS = 0.1, 0.5


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@settings()
class ClipConfig:
    """Which frames of a video a clip has, and which part of them."""

    frames: int = setting("frames of a clip", default=16, at_least=1, group=CLIPS)
    strides: WholeSpan = setting(
        "distance of the frames, drawn from A to B",
        default=(1, 1),
        usual=False,
        manual="smallest and largest distance of the frames, drawn log-uniformly",
        metavar="A[:B]",
        group=CLIPS,
    )
    side: int = setting("pixels of a side", default=224, at_least=1, flag="")
    min_crop: Number = setting(
        "random crops down to this share",
        default=1.0,
        usual=False,
        manual="smallest share of the frame's area that a random crop keeps; 1: whole frames",
        above=0,
        at_most=1,
        metavar="SHARE",
        group=CLIPS,
    )
    crop_aspect: Span | None = setting(
        "width over height of random crops, from A to B",
        default=None,
        usual="default: the frame's, up to 4/3 either way",
        manual="range of width over height of random crops, drawn log-uniformly as torchvision's `RandomResizedCrop` "
        "does; a single number: always that",
        metavar="A[:B]",
        group=CLIPS,
    )
    clip_start: ClipStart = setting(
        "where clips begin",
        default="auto",
        usual="default auto: random, first with labels",
        manual="the frame that clips begin with: `random`, the `first`, or `auto`, which is the first one where labels "
        "are given, and random otherwise",
        group=CLIPS,
    )
    mirror: bool = setting(
        "mirror half of the clips, play a quarter backwards",
        default=False,
        usual=False,
        manual="mirror half of the clips, and play half of those backwards whose stride allows it",
        group=CLIPS,
    )

    def __post_init__(self) -> None:
        if not 1 <= self.strides[0] <= self.strides[1]:
            raise InputError(f"clips of {self.frames} frames at strides {self.strides} are not possible")
        if self.crop_aspect is not None and not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
            raise InputError(f"crop_aspect must be a range above 0, got {self.crop_aspect}")
        if self.crop_aspect is not None and self.min_crop == 1:
            raise InputError("crop_aspect is of random crops: give min_crop, too")


@settings()
class LabelConfig:
    """How labels are searched for files of labels."""

    task: str = setting("mosaic, or the folder or id of a VideoMAE", default="mosaic")
    target: Number | None = setting(
        "a frame is done at this loss",
        default=None,
        usual=f"default: {MOSAIC_LABEL_LOSS} with the mosaic, {VIDEOMAE_LABEL_LOSS} with a VideoMAE",
        at_least=0,
        flag="--loss",
        refusal="the target loss must be at least 0",
    )
    max_ratio: Number = setting(
        "share of a frame's patches at most",
        default=1.0,
        above=0,
        at_most=1,
        refusal="the largest ratio must lie in (0, 1]",
    )
    frames: int = setting("frames of a clip, from the start", default=16, at_least=1)
    stride: int = setting("distance of the frames", default=1, at_least=1)
    batch: int = setting("clips searched at a time", default=8, at_least=1, refusal="a batch needs at least 1 clip")
    scales: str = setting("sides of the grid's pictures", default="32+64+112+224", flag="")
    patch: int = setting("side of a patch in pixels", default=16, at_least=1, flag="")

    def __post_init__(self) -> None:
        _ = self.grid, self.clip

    @property
    def grid(self) -> PatchGrid:
        from ..gaze.grid import PatchGrid

        return PatchGrid.of(self.scales, self.patch)

    @property
    def clip(self) -> ClipConfig:
        return ClipConfig(self.frames, (self.stride, self.stride), self.grid.scales[-1][0])


@settings("training settings: ")
class SearchConfig:
    """How labels are searched while training, where no label files are given.

    A label is a distribution over the patches, proportional to (gain + floor) ** sharpness, so patches that are as good
    share it. Each clip draws a target and a share of random picks of its own.
    """

    target: Span = setting(
        "loss that searched labels reach (NTP)",
        default=(0.06, 0.8),
        usual=False,
        manual="range of the loss at which a frame is done, for searched labels; each clip draws its own, "
        "log-uniformly (NTP)",
        metavar="A:B",
        group=LOSSES,
    )
    max_patches: int = setting(
        "searched labels of a frame at most (NTP)", default=120, usual=False, at_least=1, group=LOSSES
    )
    disturbance: Number = setting(
        "share of random patches in between (NTP)",
        default=0.2,
        usual=False,
        manual="largest share of random patches among searched labels; each clip draws its own (NTP)",
        at_least=0,
        below=1,
        group=LOSSES,
    )
    sharpness: Number = setting(
        "of searched labels; 0: the best patch alone (NTP)",
        default=4.0,
        usual=False,
        at_least=0,
        group=LOSSES,
    )
    floor: Number = setting(
        "gains far below this teach nothing (NTP)",
        default=3e-4,
        above=0,
        flag="--gain-floor",
        metavar="GAIN",
        group=LOSSES,
    )

    def __post_init__(self) -> None:
        _require(0 < self.target[0] <= self.target[1], f"target losses {self.target} are not a range above 0")


@settings("training settings: ")
class TrainingConfig:
    """A training of a gaze model: what learns, by which losses, how long and how fast."""

    algorithm: Algorithm = setting(default="ntp", usual=False, manual="next-token prediction, or GRPO")
    steps: int = setting("optimizer steps", default=1000, usual="default: by --epochs", at_least=1, group=STEPS)
    batch_size: int = setting("clips of a step, over all processes", default=8, at_least=1, group=STEPS)
    micro_batch: int = setting("clips a process works on at a time", default=8, at_least=1, group=STEPS)
    optimizer: Optimizer = setting(default="adamw", usual=False, manual="of torch", group=STEPS)
    lr: Number = setting(default=5e-4, usual=False, manual="largest learning rate", group=STEPS)
    min_lr: Number = setting(default=0.0, usual=False, manual="smallest learning rate", group=STEPS)
    convolution_lr: Number = setting(
        "share of it that convolutions learn with",
        default=0.02,
        usual=False,
        manual="share of the learning rate that the spatial convolutions learn with; 1: as published",
        group=STEPS,
    )
    schedule: Schedule = setting(default="linear_w_warmup", usual=False, manual="of the learning rate", group=STEPS)
    weight_decay: Number = setting(default=0.0, usual=False, manual="of the optimizer", group=STEPS)
    clip_norm: Number | None = setting(
        "largest norm of the gradient; 0: any", default=1.0, usual=False, above=0, zero_is_none=True, group=STEPS
    )
    precision: Precision = setting(default="no", usual=False, manual="no: float32", group=STEPS)
    log_probabilities: LogProbabilities = setting(
        "of the distribution that is sampled from, at generation's positions, or as published",
        default="matched",
        usual=False,
        manual="`matched`: those of the distribution that generation samples from (repeat mask, end-token ban, "
        "temperature) at generation's positions; `published`: those of the published trainer",
        group=LOSSES,
    )
    predict_loss: bool = setting(
        "leave the loss-prediction head untrained",
        default=True,
        usual=False,
        manual="whether the loss-prediction head is trained",
        off="--no-loss-prediction",
        group=LOSSES,
    )
    prediction_weight: Number = setting("weight of the loss-prediction term", default=1.0, usual=False, group=LOSSES)
    relative_prediction: Number = setting(
        "an error of the predicted loss counts relative to that prediction + R; 0: as it is (NTP)",
        default=0.0,
        usual=False,
        at_least=0,
        metavar="R",
        group=LOSSES,
    )
    reward_share: Number = setting(
        "share of the policy loss that is what a pick earns, and not its label (NTP)",
        default=0.0,
        usual=False,
        manual="share of the policy loss that is what a pick would gain, over what the best one would, averaged over "
        "the model's distribution; the rest is next-token prediction (NTP, searched labels)",
        at_least=0,
        below=1,
        metavar="SHARE",
        group=LOSSES,
    )
    hint_weight: Number = setting(
        "weight of the hints, a training aid; 0: none (NTP)",
        default=0.3,
        usual=False,
        manual="weight of the hints at the start, with searched labels; it fades to 0 (NTP)",
        group=LOSSES,
    )
    search: SearchConfig = SearchConfig()
    group_size: int = setting("rollouts of a clip (GRPO)", default=8, usual=False, at_least=1, group=LOSSES)
    discount: Number = setting(
        "of a reward, for each later patch (GRPO)", default=0.995, usual=False, above=0, at_most=1, group=LOSSES
    )
    temperature: Span = setting(
        "of rollouts, from A to B (GRPO)", default=(1.0, 1.0), usual=False, metavar="A[:B]", group=LOSSES
    )
    top_k: int | None = setting(
        "sample from the best K only; the published code has 50 (GRPO)", default=None, usual=False, group=LOSSES
    )
    ratio: RatioText | None = setting(
        "of rollouts: fixed:0.25, uniform:0:0.5 or exponential:10:0:1",
        default=None,
        usual=OWN,
        manual="share of a clip's patches in rollouts: `fixed:R`, `uniform:A:B`, or `exponential:LAMBDA:A:B`, drawn "
        "until it lies between A and B",
        metavar="R",
        group=BUDGETS,
    )
    frame_ratio: FrameRatioText | None = setting(
        "over the frames: uniform, self, dirichlet:0.5 or, for each frame, dirichlet:10,3,...",
        default=None,
        usual=OWN,
        manual="how rollouts share it among the frames: `uniform`; `dirichlet:ALPHA`, drawn, with one alpha or one for "
        "each frame (`dirichlet:10,3,3,3`); `self`: as many as the stop rule keeps in a first pass",
        metavar="R",
        group=BUDGETS,
    )
    requirement: RequirementText | None = setting(
        "stop rule: none, fixed:0.7 or uniform:0.6:0.9",
        default=None,
        usual=OWN,
        manual="stop rule of rollouts, a predicted loss: `none`, `fixed:LOSS` or `uniform:A:B`",
        metavar="R",
        group=BUDGETS,
    )
    train_gaze: bool = setting(
        "do not train the gaze model",
        default=True,
        usual=False,
        manual="whether the gaze model is trained",
        off="--freeze-gaze",
    )
    train_task: bool = setting("train the reconstruction model, too", default=False, usual=False)
    selections: Selections = setting(
        default="gaze",
        flag="",
        manual="what a reconstruction model that is trained alone rebuilds frames from, without labels: selections of "
        "the gaze model, or random patches",
    )
    seed: int = setting(
        default=0,
        usual=False,
        manual="of everything random",
        at_least=0,
        at_most=2**32 - 1,
        refusal="seed must lie in [0, 2**32 - 1]",
        group=STEPS,
    )
    save_every: int = setting(
        default=500, usual=False, manual="steps between checkpoints", at_least=1, metavar="STEPS", group=WATCH
    )
    keep: int = setting("newest checkpoints kept", default=2, at_least=1, metavar="N", group=WATCH)
    val_every: int = setting(
        default=500, usual=False, manual="steps between validations", at_least=1, metavar="STEPS", group=WATCH
    )
    val_clips: int = setting(
        "clips of val/ looked at; 0: none, -1: all", default=16, usual=False, at_least=-1, metavar="N", group=WATCH
    )
    val_ratio: RatioText | None = setting(
        "ratio in validation, also kept in the model's configuration",
        default=None,
        usual=f"default: {VAL_RATIO}",
        manual="as `ratio`, in validation; where it is given, it becomes the trained model's own at inference",
        metavar="R",
        group=WATCH,
    )
    val_frame_ratio: FrameRatioText | None = setting(
        "over the frames, in validation",
        default=None,
        usual="default: uniform",
        manual="as `frame_ratio`, in validation, and kept as `val_ratio` is",
        metavar="R",
        group=WATCH,
    )
    val_requirement: RequirementText | None = setting(
        "stop rule in validation",
        default=None,
        usual="default: fixed at --val-loss",
        manual="as `requirement`, in validation, and kept as `val_ratio` is; in place of `val_loss`",
        metavar="R",
        group=WATCH,
    )
    val_loss: Number | None = setting(
        "stop rule in validation, and the new model's own",
        default=None,
        usual=f"default: the task's, {MOSAIC_LOSS} with the mosaic and {VIDEOMAE_LOSS} with a VideoMAE; 0: none",
        at_least=0,
        refusal="val_loss must be at least 0 (0: no stop rule)",
        group=WATCH,
    )
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = setting(
        default="none",
        usual=False,
        manual="where curves, and pictures and a film of validation, go besides the run's folder",
        group=WATCH,
    )

    def __post_init__(self) -> None:
        _require(self.algorithm != "grpo" or self.group_size >= 2, "a group needs at least 2 rollouts to compare")
        _require(self.lr > 0 and 0 <= self.min_lr <= self.lr, f"lr {self.lr} and min_lr {self.min_lr} do not fit")
        _require(min(self.temperature) > 0, f"temperatures must be above 0, got {self.temperature}")
        _require(self.train_gaze or self.train_task, "nothing is to be trained")
        gains = self.algorithm == "ntp" and self.log_probabilities == "matched" and self.search.sharpness > 0
        _require(
            gains or not self.reward_share,
            "a reward_share needs ntp, matched log_probabilities and labels that are no single patches (sharpness > 0)",
        )
        both = self.val_loss is not None and self.val_requirement is not None
        _require(not both, "val_loss and val_requirement are both a stop rule in validation: give one")

    def rollout_budget(self, budget: BudgetConfig, frames: int) -> BudgetConfig:
        """Of a model that is trained on clips of `frames` frames, from what its configuration has."""
        changed = with_strategies(budget, "training", self.ratio, self.frame_ratio, self.requirement)
        if self.frame_ratio is not None or self.algorithm == "grpo":
            check_frames(changed, "training", frames, "--frame-ratio")
        return changed

    def own_budget(self, budget: BudgetConfig) -> BudgetConfig:
        """Of the model that comes out: what validation was given, at inference."""
        return with_strategies(budget, "inference", self.val_ratio, self.val_frame_ratio, self.val_requirement)

    def val_budget(self, budget: BudgetConfig, frames: int) -> BudgetConfig:
        """Of validation on clips of `frames` frames, as it is at inference."""
        rule = self.val_requirement or (f"fixed:{self.val_loss}" if self.val_loss else "none")
        ratio, over_frames = self.val_ratio or VAL_RATIO, self.val_frame_ratio or "uniform"
        changed = with_strategies(budget, "inference", ratio, over_frames, rule)
        check_frames(changed, "inference", frames, "--val-frame-ratio")
        return changed

    @property
    def hinted(self) -> bool:
        """Whether a head for hints is trained along."""
        return self.algorithm == "ntp" and self.hint_weight > 0 and self.search.sharpness > 0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def accumulation(self, processes: int) -> tuple[int, int]:
        """(clips of a process at a time, how often before an optimizer step)."""
        _require(
            self.batch_size % processes == 0,
            f"training settings: batch_size {self.batch_size} cannot be shared by {processes} processes",
        )
        local = self.batch_size // processes
        micro = min(local, self.micro_batch)
        _require(
            local % micro == 0,
            f"training settings: {local} clips of a process are not a multiple of micro_batch {micro}",
        )
        return micro, local // micro
