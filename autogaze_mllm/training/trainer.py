"""The training loop, on accelerate: CPU, one GPU, or as many processes as `accelerate launch` starts.

Notable design decisions:
- everything random about a step comes from the seed and the number of the step, so nothing but the weights, the
  optimizer and the number has to be kept for a resumed run to go on exactly as an uninterrupted one;
- the stream of clips is the same for any number of processes: each takes its part of every batch.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
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
from ..common.storage.files import output_folder, write_json
from ..common.storage.locks import run_lock
from ..gaze.autogaze.config import AutoGazeConfig
from ..gaze.autogaze.model import AutoGaze
from .config import TrainingConfig
from .data.clips import ClipSource
from .data.labels import Label, collate_labels, key_of
from .monitoring.curves import plot_curves
from .monitoring.log import EVERY, in_words, of_run, run_log
from .monitoring.trackers import NONE, Trackers, check_tracker
from .objective import Batch, GazeObjective
from .run_folder.checkpoints import METRICS, MetricsFile, Trained, save_checkpoint
from .run_folder.identity import run_facts
from .run_folder.resuming import begin_run
from .schedules import learning_rate, temperature
from .selections import check_budget
from .tasks.base import ReconstructionTask, TrainableTask
from .tasks.mosaic_task import MosaicTask
from .validation import validate

LOWER = "a lower --lr may help"


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
        resume: str | Path | None = None,
    ) -> None:
        """until: stop after this step, short of the schedule's end. identity: what else decides the result (where the
        weights came from, labels, ...), as json values: a run is only gone on with where it is the same. resume: a
        checkpoint, or another run, that this run is the continuation of; once it has checkpoints of its own, they
        count."""
        if settings.val_loss is None and settings.val_requirement is None:
            settings = replace(settings, val_loss=task.usual_loss)
        self.settings, self.data = settings, data
        self.identity = dict(identity or {})
        self.last_step = min(settings.steps, until or settings.steps)
        self.run_folder = output_folder(run)
        check_tracker(settings.tracker)
        self.accelerator = _accelerator(settings, self.run_folder, cpu)
        self.trackers = Trackers(self.accelerator, settings.tracker, self.run_folder)
        self.micro, self.rounds = settings.accumulation(self.accelerator.num_processes)
        self.progress = progress and self.accelerator.is_main_process
        self.gaze, self.task = gaze.train(), task
        self._set_budgets()
        self._check()
        gaze.requires_grad_(settings.train_gaze)
        if isinstance(task, nn.Module):
            task.requires_grad_(settings.train_task).train()  # it rebuilds a share of the frames, learning or not
        objective = GazeObjective(gaze, task, settings, self._over_all, data.labels is not None)
        self.hints = objective.hints
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(objective, settings)
        self.validation: dict[str, float] = {}  # of the trained model
        trained_gaze = gaze if settings.train_gaze else None
        self.trained = Trained(trained_gaze, self._trained_task(), self.hints, self.optimizer)
        facts = run_facts(settings, data.train, data.val, gaze, task, self.identity)
        origin = None if resume is None else Path(resume)
        self.first_step = begin_run(self.run_folder, facts, self.trained, origin, self.accelerator.is_main_process)
        with warnings.catch_warnings():  # torch has another name for it, which accelerate does not know yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.objective, self.wrapped_optimizer = self.accelerator.prepare(objective, self.optimizer)

    def train(self) -> AutoGaze:
        """Runs to the last step; what an earlier, interrupted run did is not done again. Returns the trained model.

        Raises DivergenceError, with nothing of it saved, once the loss or a weight is not finite, and InputError where
        another process is at work in the run's folder.
        """
        with self._at_work():
            return self._train()

    def validate(self) -> dict[str, float]:
        """Validates the model as it is (that of the newest checkpoint, if there is one), without training it."""
        with self._at_work():
            self.trackers.start(self.settings.to_dict())
            try:
                self._validate_at_the_end(self.first_step)
            finally:
                self.trackers.finish()
        return self.validation

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The run's folder is this run's alone, and its log is written."""
        main = self.accelerator.is_main_process
        with run_lock(self.run_folder) if main else nullcontext(), run_log(self.run_folder if main else None):
            yield

    def _train(self) -> AutoGaze:
        settings, main = self.settings, self.accelerator.is_main_process
        metrics = MetricsFile(self.run_folder / METRICS, self.first_step) if main else None
        of_run.info(
            "steps %d to %d, %d videos, %d processes, batch %d = %d rounds of %d clips",
            *(self.first_step, self.last_step, len(self.data.train), self.accelerator.num_processes),
            *(settings.batch_size, self.rounds, self.micro * self.accelerator.num_processes),
        )
        self.trackers.start(settings.to_dict())
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
                    if step % EVERY == 0 or step + 1 == self.last_step:
                        of_run.info("step %d of %d: %s", step, settings.steps, in_words(values))
                    self.trackers.log(step, values)
                    if (step + 1) % settings.save_every == 0 or step + 1 == self.last_step:
                        self._save(step + 1)
            self._validate_at_the_end(self.last_step)
        finally:
            bar.close()
            self.trackers.finish()
            if metrics is not None:
                metrics.close()
        if main:
            last = {"step": self.last_step, **self.validation}
            plot_curves(self.run_folder / METRICS, self.run_folder / "curves.png", last)
            with self._own_budget():
                self._save_models()
        self.gaze.config = self._own_config()
        self.accelerator.wait_for_everyone()
        if isinstance(self.task, nn.Module):
            self.task.eval()
        return self.gaze.eval()

    def _set_budgets(self) -> None:
        """The budgets of rollouts become those of the model's configuration while it is trained."""
        config, frames = self.gaze.config, self.data.train.settings.frames
        steps = frames // config.encoder.temporal_patch_size
        self.gaze.config = replace(config, budget=self.settings.rollout_budget(config.budget, steps))
        if self.data.val is not None:
            self.settings.val_budget(config.budget, steps)  # is refused here, if it is to be

    def _own_config(self) -> AutoGazeConfig:
        """Of the model that comes out."""
        config = self.gaze.config
        return replace(config, budget=self.settings.own_budget(config.budget))

    @contextmanager
    def _own_budget(self) -> Iterator[None]:
        """What is saved meanwhile has the budgets that the trained model is to have."""
        config = self.gaze.config
        self.gaze.config = self._own_config()
        try:
            yield
        finally:
            self.gaze.config = config

    def _save_models(self) -> None:
        """What was trained, as folders of the run."""
        if self.settings.train_gaze:
            self.gaze.save_pretrained(self.run_folder / "gaze")
        trained = self._trained_task()
        if trained is not None:
            trained.save_pretrained(self.run_folder / "task")

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
                f"ntp searches labels with the mosaic only, as {task.name!r} rebuilds a frame for every patch that "
                "may come next; search those once, with `autogaze-mllm label --task`, and give them to --labels"
            )

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
        first_row = self.first_step * self.settings.batch_size
        while True:
            clips = []
            for number in range(first_row + rank * self.micro, first_row + (rank + 1) * self.micro):
                if number // size != epoch:
                    epoch = number // size
                    order = np.random.default_rng([self.settings.seed, epoch]).permutation(size)
                clips.append(source.clip(int(order[number % size]), epoch))
            first_row += processes * self.micro
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
        """All processes take part. -> {} where there is nothing to validate on."""
        if self.data.val is None or not self.settings.val_clips:
            return {}
        accelerator = self.accelerator
        values, shown = validate(
            self.gaze,
            self.task,
            self.data.val,
            self.settings,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            progress=self.progress,
        )
        if accelerator.is_main_process:
            of_run.info("validation at step %d: %s", step, in_words(values))
            self.trackers.show(step, shown)
        accelerator.wait_for_everyone()
        return values

    def _validate_at_the_end(self, step: int) -> None:
        self.validation = self._validation(step)
        if self.validation:
            self.trackers.log(step, self.validation)
            if self.accelerator.is_main_process:
                write_json(self.run_folder / "validation.json", self.validation)

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
            with self._own_budget():
                save_checkpoint(self.run_folder, step, self.trained, self.settings.to_dict(), self.settings.keep)
            of_run.info("checkpoint of step %d", step)
        self.accelerator.wait_for_everyone()


def _accelerator(settings: TrainingConfig, folder: Path, cpu: bool) -> Accelerator:
    """Raises InputError where the process has trained otherwise before, which accelerate keeps."""
    # Buffers are never trained here, and their broadcast would cost a message for each step.
    options = DistributedDataParallelKwargs(broadcast_buffers=False)
    try:
        # Precision is ours to choose: accelerate's would be fixed for the whole process by the first trainer in it.
        return Accelerator(
            cpu=cpu,
            mixed_precision="no",
            kwargs_handlers=[options],
            log_with=None if settings.tracker == NONE else settings.tracker,
            project_dir=folder,
        )
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise InputError(
            "this process has trained in another precision or on another device before, which accelerate keeps: train "
            "in a process of its own"
        ) from error


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
