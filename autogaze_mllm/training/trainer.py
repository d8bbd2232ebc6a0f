"""The training loop, on accelerate: CPU, one GPU, or as many processes as `accelerate launch` starts.

Notable design decisions:
- everything random about a step comes from the seed and the number of the step, so nothing but the weights, the
  optimizer and the number has to be kept for a resumed run to go on exactly as an uninterrupted one;
- the stream of clips is the same for any number of processes: each takes its part of every batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from tqdm.auto import tqdm

from ..common.compute.workers import Prefetch
from ..common.errors import DivergenceError, InputError
from ..common.extras import require_extra
from ..common.storage.files import output_folder, read_json, write_json
from ..common.storage.json_diff import check_same
from ..common.storage.locks import run_lock
from ..gaze.autogaze.model import AutoGaze
from .checkpoints import MetricsFile, Trained, load_newest, save_checkpoint
from .config import TrainingConfig
from .curves import plot_curves
from .data.clips import ClipConfig, ClipSource
from .data.labels import Label, collate_labels, key_of
from .objective import Batch, GazeObjective
from .schedules import learning_rate, temperature
from .selections import check_budget
from .tasks.base import ReconstructionTask, TrainableTask
from .tasks.mosaic import MosaicTask
from .validation import validate

LOWER = "a lower --lr may help"
FREE = {"keep", "save_every", "val_every", "val_clips", "tracker", "micro_batch"}  # may be others when a run goes on


@dataclass(frozen=True)
class TrainingData:
    """labels: entries by `key_of` a path, or None where they are searched for while training."""

    train: ClipSource
    val: ClipSource | None = None
    labels: dict[str, Label] | None = None


class GazeTrainer:
    """Trains `gaze` (and `task`, where it has parameters to train) into the folder `run`."""

    def __init__(
        self,
        gaze: AutoGaze,
        task: ReconstructionTask,
        data: TrainingData,
        settings: TrainingConfig,
        run: str | Path,
        *,
        until: int | None = None,
        cpu: bool = False,
        progress: bool = True,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """until: stop after this step, short of the schedule's end. identity: what else decides the result (where the
        weights came from, labels, ...), as json values: a run is only gone on with where it is the same."""
        if settings.val_loss is None:
            settings = dataclasses.replace(settings, val_loss=task.usual_loss)
        self.settings, self.data = settings, data
        self.identity = dict(identity or {})
        self.last_step = min(settings.steps, until or settings.steps)
        self.run_folder = output_folder(run)
        if settings.tracker != "none":
            extra = "wandb" if settings.tracker == "wandb" else "train"
            require_extra(extra, f"--tracker {settings.tracker}", settings.tracker)
        # Buffers are never trained here, and their broadcast would cost a message for each step.
        options = DistributedDataParallelKwargs(broadcast_buffers=False)
        # Precision is ours to choose: accelerate's would be fixed for the whole process by the first trainer in it.
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",
            kwargs_handlers=[options],
            log_with=None if settings.tracker == "none" else settings.tracker,
            project_dir=self.run_folder,
        )
        self.micro, self.rounds = settings.accumulation(self.accelerator.num_processes)
        self.progress = progress and self.accelerator.is_main_process
        self.gaze, self.task = gaze.train(), task
        self._check()
        gaze.requires_grad_(settings.train_gaze)
        if isinstance(task, nn.Module):
            task.requires_grad_(settings.train_task).train()  # it rebuilds a share of the frames, learning or not
        objective = GazeObjective(gaze, task, settings, self._over_all, data.labels is not None)
        self.hints = objective.hints
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(objective, settings)
        self._identify()
        self.validation: dict[str, float] = {}  # of the trained model
        trained_gaze = gaze if settings.train_gaze else None
        self.trained = Trained(trained_gaze, self._trained_task(), self.hints, self.optimizer)
        self.first_step, _ = load_newest(self.run_folder, self.trained)
        self.objective, self.wrapped_optimizer = self.accelerator.prepare(objective, self.optimizer)

    def train(self) -> AutoGaze:
        """Runs to the last step; what an earlier, interrupted run did is not done again. Returns the trained model.

        Raises DivergenceError, with nothing of it saved, once the loss or a weight is not finite, and InputError where
        another process is at work in the run's folder.
        """
        with run_lock(self.run_folder) if self.accelerator.is_main_process else nullcontext():
            return self._train()

    def _train(self) -> AutoGaze:
        settings, main = self.settings, self.accelerator.is_main_process
        metrics = MetricsFile(self.run_folder / "metrics.jsonl", self.first_step) if main else None
        self._start_tracker()
        bar = tqdm(
            total=self.last_step, initial=self.first_step, unit="step", desc="training", disable=not self.progress
        )
        try:
            with Prefetch(self._batches()) as batches:
                for step in range(self.first_step, self.last_step):
                    values = self._validation(step) if step % settings.val_every == 0 else {}
                    values |= self._step(step, batches)
                    bar.update()
                    bar.set_postfix(loss=f"{values['loss']:.3f}")
                    if metrics is not None:
                        metrics.write(step, values)
                    self.accelerator.log(values, step)
                    if (step + 1) % settings.save_every == 0 or step + 1 == self.last_step:
                        self._save(step + 1)
        finally:
            bar.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()  # `end_training` would end the process group as well, which is needed further on
            self.accelerator.trackers.clear()
            if metrics is not None:
                metrics.close()
        self.validation = self._validation(self.last_step)
        if main and self.validation:
            write_json(self.run_folder / "validation.json", self.validation)
        if main:
            plot_curves(self.run_folder / "metrics.jsonl", self.run_folder / "curves.png")
            if self.settings.train_gaze:
                self.gaze.save_pretrained(self.run_folder / "gaze")
            trained = self._trained_task()
            if trained is not None:
                trained.save_pretrained(self.run_folder / "task")
        self.accelerator.wait_for_everyone()
        if isinstance(self.task, nn.Module):
            self.task.eval()
        return self.gaze.eval()

    def _check(self) -> None:
        """Raises InputError for a task and settings that do not go together."""
        settings, task, labels = self.settings, self.task, self.data.labels
        if settings.train_task and not isinstance(task, TrainableTask):
            raise InputError(f"the task {task.name!r} has no parameters to train")
        if not settings.train_gaze:
            if settings.selections == "random" and labels is None:
                check_budget(self.gaze.config.budget)
            return
        if labels is not None and settings.algorithm != "ntp":
            raise InputError("labels are for ntp; grpo learns from the model's own selections")
        if labels is None and settings.algorithm == "ntp" and not isinstance(task, MosaicTask):
            raise InputError(
                f"ntp searches labels with the mosaic only; search those of {task.name!r} once, with "
                f"`autogaze-mllm label --task`, and give them to --labels"
            )

    def _start_tracker(self) -> None:
        """Beside `metrics.jsonl`: tensorboard in the run's folder of that name, or a run of wandb's project."""
        tracker, run = self.settings.tracker, self.run_folder
        project = "autogaze_mllm" if tracker == "wandb" else tracker
        wandb = {"dir": str(run), "name": run.name, "config": self.settings.to_dict()}
        self.accelerator.init_trackers(project, init_kwargs={"wandb": wandb})

    def _step(self, step: int, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step. -> its numbers, averaged over processes and rounds."""
        settings = self.settings
        rate = learning_rate(settings.schedule, step, settings.steps, settings.lr, settings.min_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        rollout_temperature = temperature(step, settings.steps, *settings.temperature)
        hints = settings.hint_weight * (1 - step / settings.steps)  # what helps a young model would bind an older one
        self._seed(step)
        sums: dict[str, torch.Tensor] = {}
        for number in range(self.rounds):
            batch = next(batches).to(self.accelerator.device)
            last = number == self.rounds - 1
            with _sync(self.accelerator, self.objective, last):
                with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    outcome = self.objective(batch, rollout_temperature, hints)
                self.accelerator.backward(outcome.loss / self.rounds)
            for name, value in ({"loss": outcome.loss.detach()} | outcome.metrics).items():
                sums[name] = sums.get(name, 0.0) + value.float() / self.rounds
        if settings.clip_norm is not None:
            sums["grad_norm"] = self.accelerator.clip_grad_norm_(self.parameters, settings.clip_norm)
        try:
            self.wrapped_optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise DivergenceError(
                f"step {step}: the learning rate and what it is multiplied by are too large"
            ) from error
        self.wrapped_optimizer.zero_grad()
        names = list(sums)
        means = self.accelerator.reduce(torch.stack([sums[name] for name in names]), "mean")
        values = dict(zip(names, means.tolist(), strict=True))
        if not np.isfinite(values["loss"]):
            raise DivergenceError(f"the loss of step {step} is not a number; {LOWER}")
        return values | {"lr": rate}

    def _batches(self) -> Iterator[Batch]:
        """This process's part of every batch, from the first step on, without an end."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        source, size = self.data.train, len(self.data.train)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        place = self.first_step * self.settings.batch_size
        while True:
            clips = []
            for number in range(place + rank * self.micro, place + (rank + 1) * self.micro):
                if number // size != epoch:
                    epoch = number // size
                    order = np.random.default_rng([self.settings.seed, epoch]).permutation(size)
                clips.append(source.clip(int(order[number % size]), epoch))
            place += processes * self.micro
            labels = None
            if self.data.labels is not None:
                labels = collate_labels([self._label(clip.path) for clip in clips])
            yield Batch(torch.stack([clip.pixels for clip in clips]), [clip.seed for clip in clips], labels)

    def _label(self, path: Path) -> Label:
        assert self.data.labels is not None
        label = self.data.labels[key_of(path)]
        if len(label["gazing_pos"]) != self.data.train.settings.frames:
            raise InputError(
                f"{path}: its label has {len(label['gazing_pos'])} frames, the clips {self.data.train.settings.frames}"
            )
        return label

    def _validation(self, step: int) -> dict[str, float]:
        if self.data.val is None or not self.settings.val_clips:
            return {}
        values: dict[str, float] = {}
        if self.accelerator.is_main_process:
            self._seed(step)
            values = validate(
                self.gaze, self.task, self.data.val, self.settings, self.run_folder / "pictures" / f"step-{step:08}.png"
            )
            self.gaze.train()
        self.accelerator.wait_for_everyone()
        return values

    def _seed(self, step: int) -> None:
        """Budgets, which all processes must agree on, come from Python's generator; rollouts from torch's."""
        random.seed(self.settings.seed * 1_000_003 + step)
        torch.manual_seed((self.settings.seed * 1_000_003 + step) * 4096 + self.accelerator.process_index)

    def _over_all(self, value: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(value.detach(), "sum")

    def _trained_task(self) -> TrainableTask | None:
        return self.task if self.settings.train_task and isinstance(self.task, TrainableTask) else None

    def _save(self, step: int) -> None:
        self.accelerator.wait_for_everyone()
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise DivergenceError(f"the weights after step {step} are not finite, nothing was saved; {LOWER}")
        if self.accelerator.is_main_process:
            save_checkpoint(self.run_folder, step, self.trained, self.settings.to_dict(), self.settings.keep)
        self.accelerator.wait_for_everyone()

    def _identify(self) -> None:
        """Keeps beside the checkpoints all that decides the result; a resumed run with something else would not go on
        as the first one."""
        path, mine = self.run_folder / "settings.json", self._facts()
        if path.exists() and any((self.run_folder / "checkpoints").glob("step-*")):
            defaults = _as_json(TrainingConfig().to_dict() | {"clips": vars(ClipConfig())})
            stored = _filled(read_json(path), defaults)
            told = {name for name in mine if name in stored and name not in FREE}  # some came after a run was begun
            check_same(self.run_folder, *({name: one[name] for name in told} for one in (stored, mine)))
        if self.accelerator.is_main_process:
            write_json(path, mine)

    def _facts(self) -> dict[str, Any]:
        train, task = self.data.train, self.task
        names = hashlib.blake2b(digest_size=16)
        for video in train.paths:
            names.update(
                f"{key_of(video)} {video.stat().st_size if video.is_file() else -1}\n".encode(errors="replace")
            )
        config = getattr(getattr(task, "model", None), "config", None)
        facts = self.settings.to_dict() | {
            "clips": vars(train.settings),
            "videos": len(train),
            "video_files": names.hexdigest(),
            "gaze": self.gaze.config.to_dict(),
            "task": {
                "name": task.name,
                "config": config.to_dict() if config is not None else None,
                "sample_rate": getattr(task, "sample_rate", None),
            },
            **self.identity,
        }
        return _as_json(facts)


def _filled(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings that came after a run was begun have their defaults in it."""
    filled = {**defaults, **stored}
    return filled | {
        name: _filled(stored[name], value)
        for name, value in defaults.items()
        if isinstance(value, dict) and isinstance(stored.get(name), dict)
    }


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as the lists that json gives back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value

    return plain(values)


def _sync(accelerator: Accelerator, module: nn.Module, last: bool) -> Any:
    """Gradients are shared between processes in the last round of a step only."""
    return nullcontext() if last else accelerator.no_sync(module)


def make_optimizer(objective: GazeObjective, settings: TrainingConfig) -> torch.optim.Optimizer:
    """Convolutions learn more slowly: they sum over hundreds of pixels or thousands of features with a mean far from 0,
    so that steps of a size that suits the decoder would undo within a few of them what they knew."""
    slow = {
        id(parameter)
        for module in objective.gaze.gazing_model.vision_model.modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size != (1, 1, 1)
        for parameter in module.parameters()
    }
    trained = [p for p in objective.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in slow], "scale": 1.0},
        {"params": [p for p in trained if id(p) in slow], "scale": settings.convolution_lr},
    ]
    parameters = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
