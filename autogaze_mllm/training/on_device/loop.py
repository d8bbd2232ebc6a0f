"""Training by the clock: so many minutes, whatever the machine does in them.

The learning rate and the stages follow the share of the time that has passed; the model is saved every so often, at the
end, and when the run is told to end. A run that was interrupted goes on with the time it had left.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.errors import InputError
from ...common.storage.files import output_folder
from ...common.storage.json_text import Fields
from ...common.storage.locks import run_lock
from ...gaze.autogaze.model import AutoGaze
from ..config import TrainingConfig
from ..objective import GazeObjective
from ..run_folder.checkpoints import MetricsFile, Trained, load_newest, save_checkpoint
from ..tasks.mosaic_task import MosaicTask
from ..trainer import make_optimizer
from .augment import TakeSource
from .pool import PoolConfig, PoolSource

logger = logging.getLogger(__name__)

WARMUP = 0.03  # share of the time in which the learning rate rises


@dataclass(frozen=True)
class Stage:
    """share: of the time. batch: clips of a step."""

    name: str
    share: float
    pool: PoolConfig
    batch: int


class Clock:
    """Seconds spent, those of earlier, interrupted runs counted in, and steps, where their number is limited, too."""

    def __init__(self, limit: float, spent: float = 0.0, steps: int | None = None) -> None:
        """limit, spent: seconds."""
        self.limit, self.steps, self.step = limit, steps, 0
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        return min(max(self.spent / self.limit, self.step / self.steps if self.steps else 0.0), 1.0)

    def over(self, step: float) -> bool:
        """Whether there is no time for another step, which would take so many seconds."""
        return self.spent + step > self.limit or self.step == self.steps


def rate_at(progress: float, peak: float) -> float:
    """The learning rate: up, then down to a fiftieth along a half cosine."""
    if progress < WARMUP:
        return peak * max(progress / WARMUP, 0.02)
    return peak * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * (progress - WARMUP) / (1 - WARMUP)))))


def stage_at(progress: float, stages: Sequence[Stage]) -> Stage:
    total, passed = sum(stage.share for stage in stages), 0.0
    for stage in stages:
        passed += stage.share / total
        if progress < passed:
            return stage
    return stages[-1]


class ClockTrainer:
    def __init__(
        self,
        gaze: AutoGaze,
        takes: TakeSource,
        settings: TrainingConfig,
        stages: Sequence[Stage],
        run: str | Path,
        seconds: float,
        *,
        steps: int | None = None,
        save_every: float = 60.0,
        print_every: float = 5.0,
    ) -> None:
        self.gaze, self.settings, self.stages = gaze.train(), settings, stages
        self.run = output_folder(run)
        self.task = MosaicTask(gaze.grid, gaze.processor)
        self.objective = GazeObjective(gaze, self.task, settings).to(gaze.device)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.objective, settings)
        self.save_every, self.print_every = save_every, print_every
        self.trained = Trained(gaze, None, None, self.optimizer)
        step, state = load_newest(self.run, self.trained)
        spent = float(Fields(state, self.run).get("spent", float, 0.0))
        if step:
            takes.restart(step)
        self.clock = Clock(seconds, spent, steps)
        self.clock.step = step
        self.pools = PoolSource(takes, gaze, self.task, settings.search)
        self.stopped = False
        self.batch_limit: int | None = None  # after the device ran out of memory

    def train(self) -> AutoGaze:
        """Until the time is up or the process is told to end (`stopped` is then True)."""
        with run_lock(self.run):
            return self._train()

    def _train(self) -> AutoGaze:
        metrics = MetricsFile(self.run / "metrics.jsonl", self.clock.step)
        saved = printed = time.monotonic()
        began = time.monotonic()
        with _told_to_end(self._stop):
            for values in self._steps():
                metrics.write(self.clock.step, values)
                self.clock.step += 1
                now = time.monotonic()
                if now - printed > self.print_every:
                    printed = now
                    print(_line(values, self.clock), flush=True)
                if now - saved > self.save_every:
                    saved = now
                    self.save()
                if self.stopped:
                    break
        metrics.close()
        self.save()
        print(f"trained for {time.monotonic() - began:.0f} s, {self.clock.step} steps in all", flush=True)
        return self.gaze.eval()

    def save(self) -> None:
        state = {"spent": self.clock.spent}
        save_checkpoint(self.run, self.clock.step, self.trained, state, 1)

    def _stop(self) -> None:
        self.stopped = True

    def _steps(self) -> Iterator[dict[str, Any]]:
        last = 0.0
        while not self.clock.over(last) and not self.stopped:
            stage, start = stage_at(self.clock.progress, self.stages), time.monotonic()
            pools = self.pools.draw(stage.pool)
            drawn = time.monotonic() - start
            logger.info("%s: a pool of %d clips in %.1f s", stage.name, stage.pool.clips, drawn)
            for pool in pools:
                size = min(stage.batch, self.batch_limit or stage.batch, len(pool.seen))
                for batch in pool.batches(size, self.pools.rng):
                    start = time.monotonic()
                    if self.clock.over(last) or self.stopped:
                        return
                    values = self._step(batch)
                    last = time.monotonic() - start
                    if values is not None:
                        yield {"stage": stage.name, "pool_seconds": drawn, "step_seconds": last, **values}
                    drawn = 0.0

    def _step(self, batch: Any) -> dict[str, float] | None:
        """One optimizer step -> its numbers; None where the device had too little memory for it."""
        rate = rate_at(self.clock.progress, self.settings.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        device = batch.pixels.device.type
        try:
            with torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                outcome = self.objective(batch)
            outcome.loss.backward()
        except torch.OutOfMemoryError as error:
            size = len(batch.pixels)
            self.batch_limit = max(size // 2, 1)
            if size == 1:
                raise InputError("the device has too little memory for a clip") from error
            logger.warning(
                "too little memory for %d clips of a step; %d from now on", len(batch.pixels), self.batch_limit
            )
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm or float("inf"))
        names = ["loss", *outcome.metrics, "grad_norm"]
        numbers = [outcome.loss.detach(), *outcome.metrics.values(), norm]
        values = dict(zip(names, torch.stack([n.float() for n in numbers]).tolist(), strict=True))
        if np.isfinite(values["grad_norm"]):
            self.optimizer.step()
        return values | {"lr": rate, "clips": len(batch.pixels)}


@contextmanager
def _told_to_end(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the run after the step in hand."""
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(values: dict[str, Any], clock: Clock) -> str:
    shown = " ".join(
        f"{name} {values[name]:.3f}" for name in ("loss", "policy_loss", "label_entropy", "prediction_off")
    )
    return (
        f"{clock.spent:6.1f} s  step {clock.step:5}  {values['stage']}: {shown}  {values['step_seconds']:.3f} s a step"
    )
