"""`autogaze-mllm train-gaze`: train a gaze model on videos."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError
from .config_file import CONFIG, write_config
from .options import print_rows, quiet

if TYPE_CHECKING:
    from ..gaze.autogaze.model import AutoGaze
    from ..training.config import TrainingSettings
    from ..training.tasks.base import ReconstructionTask
    from ..training.trainer import TrainingData

MOSAIC_LOSS = 0.2  # of the mosaic, at about 25 dB


def add(verbs: argparse._SubParsersAction) -> None:
    train = verbs.add_parser(
        "train-gaze",
        help="train a gaze model on videos",
        description="Next-token prediction on greedy labels, or GRPO on the model's own selections. Several processes: "
        "accelerate launch ... -m autogaze_mllm.cli train-gaze ... A run that was interrupted goes on when the same "
        "command is given again.",
    )
    train.add_argument(
        "videos", metavar="VIDEOS", help="folders (with train/ and val/, or flat), or lists; with commas"
    )
    train.add_argument(
        "--out", required=True, metavar="RUN", help="folder of the run; the model is RUN/gaze at the end"
    )
    train.add_argument("--algorithm", default="ntp", choices=["ntp", "grpo"])
    train.add_argument("--init", metavar="MODEL", help="gaze model to start from, or bundled (default: a new one)")
    train.add_argument(
        "--labels", metavar="FILES", help="gazing_labels.json, with commas or wildcards (default: search)"
    )
    train.add_argument("--task", default="mosaic", metavar="TASK", help="mosaic, or the folder or id of a VideoMAE")
    train.add_argument("--task-losses", metavar="L", help="of a VideoMAE: l1, dinov2_reg, siglip2, joined by +")
    train.add_argument("--task-weights", metavar="W", help="weights of these losses, joined by +")
    train.add_argument("--dinov2-reg", metavar="MODEL", help="folder or id of the model behind dinov2_reg")
    train.add_argument("--siglip2", metavar="MODEL", help="folder or id of the model behind siglip2")
    train.add_argument("--rebuild", type=float, default=1.0, help="share of a clip's frames that a VideoMAE rebuilds")
    train.add_argument("--train-task", action="store_true", help="train the reconstruction model, too")
    train.add_argument("--freeze-gaze", action="store_true", help="do not train the gaze model")

    clips = train.add_argument_group("clips")
    clips.add_argument("--frames", type=int, default=16, help="frames of a clip (default 16)")
    clips.add_argument("--strides", default="1", metavar="A[:B]", help="distance of the frames, drawn from A to B")
    clips.add_argument("--min-crop", type=float, default=1.0, metavar="SHARE", help="random crops down to this share")
    clips.add_argument("--mirror", action="store_true", help="mirror half of the clips, play a quarter backwards")
    clips.add_argument("--decoded", metavar="FOLDER", help="keep decoded frames here, so that a video is decoded once")
    clips.add_argument("--unreadable", type=float, default=0.05, help="share of files that may be unreadable")

    steps = train.add_argument_group("steps")
    steps.add_argument("--steps", type=int, help="optimizer steps (default: by --epochs)")
    steps.add_argument("--until", type=int, metavar="STEP", help="stop after this one; later runs can go on from there")
    steps.add_argument("--epochs", type=float, default=1.0, help="passes over the videos (default 1)")
    steps.add_argument("--batch-size", type=int, default=8, help="clips of a step, over all processes (default 8)")
    steps.add_argument("--micro-batch", type=int, default=8, help="clips a process works on at a time (default 8)")
    steps.add_argument("--optimizer", default="adamw", choices=["adam", "adamw", "sgd"])
    steps.add_argument("--lr", type=float, default=5e-4)
    steps.add_argument("--convolution-lr", type=float, default=0.02, help="share of it that convolutions learn with")
    steps.add_argument("--min-lr", type=float, default=0.0)
    steps.add_argument("--schedule", default="linear_w_warmup", choices=["linear", "linear_w_warmup", "constant"])
    steps.add_argument("--weight-decay", type=float, default=0.0)
    steps.add_argument("--clip-norm", type=float, default=1.0, help="largest norm of the gradient; 0: any")
    steps.add_argument("--precision", default="no", choices=["no", "bf16"])
    steps.add_argument("--seed", type=int, default=0)
    steps.add_argument("--device", choices=["cpu"], help="cpu even where there is a GPU")

    losses = train.add_argument_group("losses")
    losses.add_argument(
        "--log-probabilities",
        default="matched",
        choices=["matched", "published"],
        help="of the distribution that is sampled from, at generation's positions, or as published",
    )
    losses.add_argument("--no-loss-prediction", action="store_true", help="leave the loss-prediction head untrained")
    losses.add_argument("--prediction-weight", type=float, default=1.0, help="weight of the loss-prediction term")
    losses.add_argument(
        "--hint-weight", type=float, default=0.3, help="weight of the hints, a training aid; 0: none (NTP)"
    )
    losses.add_argument("--target", default="0.06:0.8", metavar="A:B", help="loss that searched labels reach (NTP)")
    losses.add_argument("--max-patches", type=int, default=120, help="searched labels of a frame at most (NTP)")
    losses.add_argument("--disturbance", type=float, default=0.2, help="share of random patches in between (NTP)")
    losses.add_argument(
        "--sharpness", type=float, default=4.0, help="of searched labels; 0: the best patch alone (NTP)"
    )
    losses.add_argument("--group-size", type=int, default=8, help="rollouts of a clip (GRPO)")
    losses.add_argument("--discount", type=float, default=0.995, help="of a reward, for each later patch (GRPO)")
    losses.add_argument("--temperature", default="1", metavar="A[:B]", help="of rollouts, from A to B (GRPO)")
    losses.add_argument("--top-k", type=int, help="sample from the best K only; the published code has 50 (GRPO)")

    budget = train.add_argument_group("budgets, kept in the model's configuration")
    budget.add_argument("--ratio", metavar="R", help="of rollouts: fixed:0.25, uniform:0:0.5 or exponential:10:0:1")
    budget.add_argument("--frame-ratio", metavar="R", help="over the frames: uniform, dirichlet:0.5 or self")
    budget.add_argument("--requirement", metavar="R", help="stop rule: none, fixed:0.7 or uniform:0.6:0.9")

    watch = train.add_argument_group("checkpoints and validation")
    watch.add_argument("--save-every", type=int, default=500, metavar="STEPS")
    watch.add_argument("--keep", type=int, default=2, metavar="N", help="newest checkpoints kept (default 2)")
    watch.add_argument("--val-every", type=int, default=500, metavar="STEPS")
    watch.add_argument("--val-clips", type=int, default=16, metavar="N", help="clips of val/ looked at; 0: none")
    watch.add_argument("--val-ratio", type=float, default=0.25, help="budget in validation")
    watch.add_argument(
        "--val-loss", type=float, default=MOSAIC_LOSS, help="stop rule in validation, and the new model's own; 0: none"
    )
    watch.add_argument("--tracker", default="none", choices=["tensorboard", "wandb", "none"])
    watch.add_argument("--json", action="store_true", help="print the result as json")
    train.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    from ..training.config import TrainingSettings
    from ..training.trainer import GazeTrainer

    data = _data(arguments)
    steps = arguments.steps
    if steps is None:
        steps = max(int(len(data.train) * arguments.epochs / arguments.batch_size), 1)
    if arguments.until is not None and arguments.until < 1:
        raise InputError(f"--until must be at least 1, got {arguments.until}")
    settings = _settings(arguments, TrainingSettings, steps)
    gaze = _gaze(arguments, data)
    task = _task(arguments, gaze)
    trainer = GazeTrainer(
        gaze,
        task,
        data,
        settings,
        arguments.out,
        until=arguments.until,
        cpu=arguments.device == "cpu",
        progress=not arguments.json,
    )
    first = trainer.first_step
    if arguments.until is not None and arguments.until < first:
        raise InputError(f"--until {arguments.until}: this run has already come to step {first}")
    if trainer.accelerator.is_main_process:
        write_config(arguments, trainer.run_folder / CONFIG)
    trainer.train()
    if not trainer.accelerator.is_main_process:
        return 0
    result: dict[str, Any] = {
        "model": str(trainer.run_folder / "gaze"),
        "steps": trainer.last_step,
        "resumed_at": first,
        "videos": len(data.train),
        "unreadable": len(data.train.failed),
        **trainer.validation,
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print_rows(
            [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in result.items()]
        )
    return 0


def _numbers(text: str, option: str, count: int | None = None) -> list[float]:
    try:
        values = [float(part) for part in text.split(":")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise InputError(f"{option} {text!r}: expected numbers with colons between them")
    return values


def _span(text: str, option: str) -> tuple[float, float]:
    values = _numbers(text, option)
    if len(values) > 2:
        raise InputError(f"{option} {text!r}: expected one number, or two with a colon between them")
    return values[0], values[-1]


def _settings(arguments: argparse.Namespace, kind: type[TrainingSettings], steps: int) -> TrainingSettings:
    from ..training.config import SearchSettings

    search = SearchSettings(
        target=_span(arguments.target, "--target"),
        max_patches=arguments.max_patches,
        disturbance=arguments.disturbance,
        sharpness=arguments.sharpness,
    )
    same = (
        "algorithm batch_size micro_batch optimizer lr convolution_lr min_lr schedule weight_decay precision "
        "log_probabilities prediction_weight hint_weight group_size discount top_k train_task seed save_every keep "
        "val_every val_clips val_ratio val_loss tracker"
    )
    return kind(
        steps=steps,
        clip_norm=arguments.clip_norm or None,
        predict_loss=not arguments.no_loss_prediction,
        search=search,
        temperature=_span(arguments.temperature, "--temperature"),
        train_gaze=not arguments.freeze_gaze,
        **{name: getattr(arguments, name) for name in same.split()},
    )


def _data(arguments: argparse.Namespace) -> TrainingData:
    from pathlib import Path

    from ..training.data.clips import ClipSettings, ClipSource, find_videos
    from ..training.data.labels import key_of, read_labels
    from ..training.trainer import TrainingData

    low, high = _span(arguments.strides, "--strides")
    settings = ClipSettings(arguments.frames, (int(low), int(high)), 224, arguments.min_crop, arguments.mirror)
    paths = find_videos(arguments.videos)
    if not paths:
        raise InputError(f"{arguments.videos}: no videos there")
    labels = None
    if arguments.labels is not None:
        labels = read_labels(arguments.labels)
        paths = [path for path in paths if key_of(path) in labels]
        if not paths:
            raise InputError(f"{arguments.labels}: has no label for any of the videos of {arguments.videos}")
    decoded = Path(arguments.decoded) if arguments.decoded else None
    train = ClipSource(paths, settings, arguments.seed, labels is None, arguments.unreadable, decoded)
    held_out = find_videos(arguments.videos, "val")
    plain = ClipSettings(arguments.frames, (int(low), int(low)))
    val = ClipSource(held_out, plain, 0, False, arguments.unreadable, decoded) if held_out else None
    return TrainingData(train, val, labels)


def _gaze(arguments: argparse.Namespace, data: TrainingData) -> AutoGaze:
    import dataclasses

    import torch

    from ..gaze.autogaze.config import PUBLISHED_TASK, AutoGazeConfig, BudgetConfig
    from ..gaze.autogaze.model import AutoGaze
    from ..training.initialize import initialize

    changes = _budget(arguments)
    torch.manual_seed(arguments.seed)
    if arguments.init is None:
        gaze = AutoGaze()
        # A frame of each of some videos, the same ones in every process.
        some = range(0, len(data.train), max(len(data.train) // 48, 1))
        frames = torch.stack([data.train.clip(number).pixels[-1] for number in some])
        initialize(gaze, gaze.processor.normalize(frames.float() / 255), arguments.seed)
    else:
        gaze = AutoGaze.from_pretrained(arguments.init)
    config: AutoGazeConfig = gaze.config
    task = arguments.task if arguments.task == "mosaic" else PUBLISHED_TASK
    if task != config.reconstruction_task:  # a stop rule in the unit of the other task would mean nothing
        usual = MOSAIC_LOSS if task == "mosaic" else BudgetConfig.requirement
        changes = {"requirement": arguments.val_loss or usual} | changes
    budget = dataclasses.replace(config.budget, **changes)
    frames = max(arguments.frames, config.max_num_frames or 0)
    gaze.config = dataclasses.replace(config, budget=budget, reconstruction_task=task, max_num_frames=frames)
    return gaze.float()


def _budget(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options -> fields of BudgetConfig."""
    changes: dict[str, Any] = {}
    if arguments.ratio is not None:
        kind, _, rest = arguments.ratio.partition(":")
        changes["ratio_training"] = kind
        if kind == "fixed":
            changes["ratio"] = _numbers(rest, "--ratio", 1)[0]
        elif kind == "uniform":
            changes["ratio_range"] = tuple(_numbers(rest, "--ratio", 2))
        elif kind == "exponential":
            rate, low, high = _numbers(rest, "--ratio", 3)
            changes |= {"ratio_lambda": rate, "exponential_range": (low, high)}
    if arguments.frame_ratio is not None:
        kind, _, rest = arguments.frame_ratio.partition(":")
        changes["frame_training"] = kind
        if kind == "dirichlet":
            changes["dirichlet_alpha"] = _numbers(rest, "--frame-ratio", 1)[0]
    if arguments.requirement is not None:
        kind, _, rest = arguments.requirement.partition(":")
        changes["use_requirement_training"] = kind != "none"
        if kind == "fixed":
            changes |= {"requirement_training": kind, "requirement": _numbers(rest, "--requirement", 1)[0]}
        elif kind == "uniform":
            changes |= {"requirement_training": kind, "requirement_range": tuple(_numbers(rest, "--requirement", 2))}
        elif kind != "none":
            raise InputError(f"--requirement {arguments.requirement!r}: expected none, fixed:L or uniform:A:B")
    return changes


def _task(arguments: argparse.Namespace, gaze: AutoGaze) -> ReconstructionTask:
    from ..training.tasks.registry import load_task

    changes = {"loss_type": arguments.task_losses, "loss_weights": arguments.task_weights}
    models = {"dinov2_reg": arguments.dinov2_reg, "siglip2": arguments.siglip2}
    return load_task(
        arguments.task,
        gaze.grid,
        gaze.processor,
        sample_rate=arguments.rebuild,
        feature_models={name: source for name, source in models.items() if source is not None},
        changes={name: value for name, value in changes.items() if value is not None},
    )
