"""`autogaze-mllm train-gaze`: train a gaze model on videos."""

from __future__ import annotations

import argparse
import logging
import math
from typing import TYPE_CHECKING, Any

from ...common.errors import InputError
from ...common.storage.json_text import to_json
from ...training.config import (
    BUDGETS,
    CLIPS,
    LOSSES,
    STEPS,
    WATCH,
    ClipConfig,
    SearchConfig,
    TrainingConfig,
)
from ..arguments.config_file import CONFIG, write_config
from ..arguments.options import add_settings, print_rows, quiet, values_of
from ..arguments.revisions import at_revisions, revision_option

if TYPE_CHECKING:
    from pathlib import Path

    from ...gaze.autogaze.config import AutoGazeConfig
    from ...gaze.autogaze.model import AutoGaze
    from ...training.tasks.base import ReconstructionTask
    from ...training.trainer import TrainingData

logger = logging.getLogger(__name__)


def add(verbs: argparse._SubParsersAction) -> None:
    train = verbs.add_parser(
        "train-gaze",
        help="train a gaze model on videos",
        description="Next-token prediction on greedy labels, or GRPO on the model's own selections. Several processes: "
        "accelerate launch ... -m autogaze_mllm.cli train-gaze ... A run that was interrupted goes on when the same "
        "command is given again.",
    )
    _what(train)
    for group, title, more in (
        (CLIPS, "clips", _files),
        (STEPS, "steps", _length),
        (LOSSES, "losses", None),
        (BUDGETS, "budgets of rollouts, kept in the model's configuration", None),
        (WATCH, "checkpoints and validation", _output),
    ):
        options = train.add_argument_group(title)
        for kind in (ClipConfig, TrainingConfig, SearchConfig):
            add_settings(options, kind, group)
        if more is not None:
            more(options)
    train.set_defaults(run=run, steps=None)


def _what(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "videos", metavar="VIDEOS", help="folders (with train/ and val/, or flat), or lists; with commas"
    )
    train.add_argument(
        "--out", required=True, metavar="RUN", help="folder of the run; the model is RUN/gaze at the end"
    )
    train.add_argument("--init", metavar="MODEL", help="gaze model to start from, or bundled (default: a new one)")
    train.add_argument(
        "--labels", metavar="FILES", help="gazing_labels.json, with commas or wildcards (default: search)"
    )
    train.add_argument("--task", default="mosaic", metavar="TASK", help="mosaic, or the folder or id of a VideoMAE")
    revision_option(train)
    train.add_argument("--task-losses", metavar="L", help="of a VideoMAE: l1, dinov2_reg, siglip2, joined by +")
    train.add_argument("--task-weights", metavar="W", help="weights of these losses, joined by +")
    train.add_argument("--dinov2-reg", metavar="MODEL", help="folder or id of the model behind dinov2_reg")
    train.add_argument("--siglip2", metavar="MODEL", help="folder or id of the model behind siglip2")
    train.add_argument(
        "--rebuild", type=float, help="share of a clip's frames that a VideoMAE rebuilds (default: its own, else 1)"
    )
    train.add_argument(
        "--only-task",
        action="store_true",
        help="train the VideoMAE alone, on labels, on selections of --init, or on random patches",
    )
    add_settings(train, TrainingConfig)


def _files(clips: argparse._ActionsContainer) -> None:
    clips.add_argument("--decoded", metavar="FOLDER", help="keep decoded frames here, so that a video is decoded once")
    clips.add_argument("--unreadable", type=float, default=0.05, help="share of files that may be unreadable")


def _length(steps: argparse._ActionsContainer) -> None:
    steps.add_argument("--until", type=int, metavar="STEP", help="stop after this one; later runs can go on from there")
    steps.add_argument(
        "--resume", metavar="PATH", help="begin where a checkpoint, or another run, is; later by RUN's own checkpoints"
    )
    steps.add_argument("--epochs", type=float, default=1.0, help="passes over the videos (default 1)")
    steps.add_argument("--device", choices=["cpu"], help="cpu even where there is a GPU")


def _output(watch: argparse._ActionsContainer) -> None:
    watch.add_argument(
        "--validate-only", action="store_true", help="train nothing; validate the newest checkpoint, or --init"
    )
    watch.add_argument("--json", action="store_true", help="print the result as json")


def run(arguments: argparse.Namespace) -> int:
    quiet()
    from ...training.trainer import GazeTrainer

    _check(arguments)
    named = (arguments.init, arguments.task, arguments.dinov2_reg, arguments.siglip2)
    arguments.init, arguments.task, arguments.dinov2_reg, arguments.siglip2 = at_revisions(arguments.revision, *named)
    data = _data(arguments)
    steps = arguments.steps
    if steps is None:
        steps = max(int(len(data.train) * arguments.epochs / arguments.batch_size), 1)
    settings = _settings(arguments, steps)
    gaze, task = _models(arguments, data)
    trainer = GazeTrainer(
        gaze,
        task,
        data,
        settings,
        arguments.out,
        until=arguments.until,
        cpu=arguments.device == "cpu",
        progress=not arguments.json,
        identity=_identity(arguments, gaze, task),
        resume=arguments.resume,
    )
    first = trainer.first_step
    if arguments.until is not None and arguments.until < first:
        raise InputError(f"--until {arguments.until}: this run has already come to step {first}")
    if trainer.accelerator.is_main_process:
        write_config(arguments, trainer.run_folder / CONFIG)
    (trainer.validate if arguments.validate_only else trainer.train)()
    if not trainer.accelerator.is_main_process:
        return 0
    trained = "gaze" if settings.train_gaze else "task"
    result: dict[str, Any] = {
        **({} if arguments.validate_only else {"model": str(trainer.run_folder / trained)}),
        "steps": first if arguments.validate_only else trainer.last_step,
        "resumed_at": first,
        "videos": len(data.train),
        "unreadable": len(data.train.failed),
        **trainer.validation,
    }
    if arguments.json:
        print(to_json(result))
    else:
        print_rows(
            [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in result.items()]
        )
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Options that are no settings."""
    if arguments.until is not None and arguments.until < 1:
        raise InputError(f"--until must be at least 1, got {arguments.until}")
    if not 0 < arguments.epochs < math.inf:
        raise InputError(f"--epochs must be a number above 0, got {arguments.epochs}")
    for name in ("unreadable", "rebuild"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--{name} is a share, in [0, 1], got {value}")


def _identity(arguments: argparse.Namespace, gaze: AutoGaze, task: ReconstructionTask) -> dict[str, Any]:
    """What decides the result besides settings and videos, by content."""
    import torch

    from ...common.storage.hashing import content_hash, fingerprint
    from ...training.data.labels import label_files

    labels = label_files(arguments.labels) if arguments.labels is not None else []
    weights = task.state_dict() if isinstance(task, torch.nn.Module) else {}
    return {
        "init": "new" if arguments.init is None else fingerprint(gaze.state_dict()),
        "labels": [content_hash(file) for file in labels],
        "task_weights": fingerprint(weights) if weights else None,
    }


def _settings(arguments: argparse.Namespace, steps: int) -> TrainingConfig:
    search = SearchConfig(**values_of(arguments, SearchConfig))
    values = {**values_of(arguments, TrainingConfig), "steps": steps, "search": search}
    if arguments.only_task:
        values |= {"train_gaze": False, "train_task": True, "selections": "gaze" if arguments.init else "random"}
    return TrainingConfig(**values)


def _data(arguments: argparse.Namespace) -> TrainingData:
    from pathlib import Path

    from ...training.data.clips import ClipSource, find_videos
    from ...training.data.labels import key_of, read_labels
    from ...training.trainer import TrainingData

    settings = ClipConfig(**values_of(arguments, ClipConfig))
    paths = find_videos(arguments.videos)
    if not paths:
        raise InputError(f"{arguments.videos}: no videos there")
    labels = None
    if arguments.labels is not None:
        labels = read_labels(arguments.labels)
        _warn_of_other_clips(settings)
        paths = [path for path in paths if key_of(path) in labels]
        if not paths:
            raise InputError(f"{arguments.labels}: has no label for any of the videos of {arguments.videos}")
    decoded = Path(arguments.decoded) if arguments.decoded else None
    train = ClipSource(paths, settings, arguments.seed, True, arguments.unreadable, decoded, labels is not None)
    held_out = _held_out(arguments)
    plain = ClipConfig(settings.frames, (settings.strides[0], settings.strides[0]))
    val = ClipSource(held_out, plain, 0, False, arguments.unreadable, decoded) if held_out else None
    return TrainingData(train, val, labels)


def _warn_of_other_clips(settings: ClipConfig) -> None:
    """Labels are of whole frames, from the start; what is asked for is done all the same."""
    others = {
        "--clip-start random": settings.clip_start == "random",
        "--strides A:B": settings.strides[0] != settings.strides[1],
        "--min-crop": settings.min_crop < 1,
        "--mirror": settings.mirror,
    }
    if asked := [option for option, given in others.items() if given]:
        logger.warning("%s: clips are others than those that the labels were made of", ", ".join(asked))


def _held_out(arguments: argparse.Namespace) -> list[Path]:
    """Videos to validate on. One folder may do without; of several, all have some, or none is asked for."""
    from ...training.data.clips import find_videos

    if not arguments.val_clips and not arguments.validate_only:
        return []
    try:
        held_out = find_videos(arguments.videos, "val")
    except InputError as error:
        if "," not in arguments.videos and not arguments.validate_only:
            return []
        raise InputError(f"{error}; give it one, or --val-clips 0 to validate on nothing") from error
    if arguments.validate_only and not (held_out and arguments.val_clips):
        raise InputError(f"{arguments.videos}: --validate-only needs videos in val/, and --val-clips other than 0")
    return held_out


def _models(arguments: argparse.Namespace, data: TrainingData) -> tuple[AutoGaze, ReconstructionTask]:
    """A gaze model that is given decides the grid; a new one takes that of the task."""
    import torch

    from ...gaze.autogaze.model import AutoGaze

    changes: dict[str, Any] = {}
    torch.manual_seed(arguments.seed)
    given = None if arguments.init is None else AutoGaze.from_pretrained(arguments.init)
    task = _task(arguments, given)
    gaze = given or _new_gaze(arguments, data, task)
    gaze.config = _configured(gaze.config, arguments, task, changes)
    return gaze.float(), task


def _new_gaze(arguments: argparse.Namespace, data: TrainingData, task: ReconstructionTask) -> AutoGaze:
    import torch

    from ...gaze.autogaze.config import AutoGazeConfig
    from ...gaze.autogaze.model import AutoGaze
    from ...training.initialize import initialize

    scales = tuple(side for side, _ in task.grid.scales)
    gaze = AutoGaze(AutoGazeConfig(scales=scales, num_vision_tokens_each_frame=task.grid.size))
    if arguments.only_task:  # it is never asked
        return gaze
    # A frame of each of some videos, the same ones in every process.
    some = range(0, len(data.train), max(len(data.train) // 48, 1))
    frames = torch.stack([data.train.clip(number).pixels[-1] for number in some])
    initialize(gaze, gaze.processor.normalize(frames.float() / 255), arguments.seed)
    return gaze


def _configured(
    config: AutoGazeConfig, arguments: argparse.Namespace, task: ReconstructionTask, changes: dict[str, Any]
) -> AutoGazeConfig:
    """With the budgets, and with the stop rule in the unit of the task: one of another task would mean nothing."""
    import dataclasses

    if arguments.init is None or task.name != config.reconstruction_task:
        changes = {"requirement": arguments.val_loss or task.usual_loss} | changes
    budget = dataclasses.replace(config.budget, **changes)
    frames = max(arguments.frames, config.max_num_frames or 0)
    return dataclasses.replace(config, budget=budget, reconstruction_task=task.name, max_num_frames=frames)


def _task(arguments: argparse.Namespace, gaze: AutoGaze | None) -> ReconstructionTask:
    from ...training.tasks.registry import load_task

    changes = {"loss_type": arguments.task_losses, "loss_weights": arguments.task_weights}
    models = {"dinov2_reg": arguments.dinov2_reg, "siglip2": arguments.siglip2}
    return load_task(
        arguments.task,
        None if gaze is None else gaze.grid,
        None if gaze is None else gaze.processor,
        sample_rate=arguments.rebuild,
        feature_models={name: source for name, source in models.items() if source is not None},
        changes={name: value for name, value in changes.items() if value is not None},
    )
