"""The trainer: transformers' own, with this package's order of samples, optimiser groups and files.

What this package writes is safetensors and json. A checkpoint also holds what transformers and DeepSpeed need to go on
from it (optimiser, scheduler, random states), which these libraries write with torch.save and, DeepSpeed's apart, read
back with weights_only. It is read from the training's own output folder only, and nothing but --resume reads it.

Three methods that are overridden have an underscore: transformers has no public place to say that the weights of a
checkpoint are there already, that DeepSpeed need not write frozen ones, or what is to become of a checkpoint that could
not be written: callbacks are called when it has been.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import seed_worker

from ..common.compute import distributed
from ..common.errors import DivergenceError
from ..common.storage.files import output_folder, read_fields, write_json, writing
from ..common.storage.weights import check_weights, shapes
from ..gaze.autogaze.model import AutoGaze
from ..mllm.model import GazedModel
from ..mllm.saving import SETTINGS_FILE, save_settings
from ..mllm.trained_parts import load_parts, save_parts
from .benchmark_eval import BenchmarkEval
from .checkpoints import STATE
from .config import FinetuneConfig
from .data.dataset import ConversationDataset, LengthSampler, collator, padding_id
from .parts import trained_groups
from .trained_model import TrainedModel

CONFIG_FILE = "finetune.json"
LOWER = "a lower learning rate may help"


class GazedTrainer(Trainer):
    """benchmark: what is asked at every evaluation, if any.

    base_source: where the base model is found: a hub id or an absolute path. lora: the LoraConfig in use."""

    def __init__(
        self,
        model: TrainedModel,
        arguments: TrainingArguments,
        config: FinetuneConfig,
        train: ConversationDataset,
        evaluation: ConversationDataset | None,
        base_source: str,
        lora: Any | None,
    ) -> None:
        self.config, self.base_source, self.lora = config, base_source, lora
        self.trained, self.gazed = model, model.gazed
        self.benchmark: BenchmarkEval | None = None
        batch = config.batch_size * config.accumulate * distributed.count()
        self.order = LengthSampler(train.lengths, batch, config.seed, config.group_by_length)
        super().__init__(
            model,
            arguments,
            collator(padding_id(model.gazed), config.packing, samples=config.trains_gaze),
            train,
            evaluation,
            callbacks=[_Epochs(self.order), _Finite()],
        )
        if not config.progress:
            self.remove_callback(PrinterCallback)

    # -- order and optimiser -------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """The trainer's own, but for the order."""
        given = self.args
        seeded = partial(seed_worker, num_workers=given.dataloader_num_workers, rank=given.process_index)
        loader: DataLoader = DataLoader(
            cast(ConversationDataset, self.train_dataset),
            batch_size=given.train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=given.dataloader_num_workers,
            pin_memory=given.dataloader_pin_memory,
            persistent_workers=given.dataloader_persistent_workers,
            worker_init_fn=seeded,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, None)
            named = list(self.trained.base_parameters())
            groups = trained_groups(named, self.gazed, self.config.parts, self.config.weight_decay)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, *given: Any, **named: Any) -> dict[str, float]:
        """Draws no random numbers that the training would have drawn."""
        device = self.args.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device.index or 0], device_type=device.type):
            return super().evaluate(*given, **named)

    def evaluation_loop(self, *given: Any, **named: Any) -> Any:
        output = super().evaluation_loop(*given, **named)  # leaves the model in evaluation mode
        if self.benchmark is None:
            return output
        with self.accelerator.autocast():  # as what the trainer calls computes by itself
            accuracy = self.benchmark.accuracy(self.state.global_step)
        return output._replace(metrics={**(output.metrics or {}), "eval_accuracy": accuracy})

    # -- saving --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained parts, gaze model and settings; `autogaze_mllm.load` reads them. Everyone must call it."""
        tensors = {}
        for name, parameter in self.trained.base_parameters():
            if parameter.requires_grad:
                with _whole(parameter) as values:  # one at a time: that much room there is
                    if not bool(values.isfinite().all()):
                        raise DivergenceError(
                            f"{name} is not finite after {self.state.global_step} updates, nothing was saved; {LOWER}"
                        )
                    if self.args.should_save and not name.startswith("gaze."):  # which is saved with the settings
                        tensors[name] = values.detach().to("cpu", copy=True)
        if not self.args.should_save:
            return
        result = Path(self.config.output)
        folder = output_folder(output_dir or result)
        (folder / SETTINGS_FILE).unlink(missing_ok=True)
        tuned = save_parts(folder, self.gazed.family, tensors, self.lora)
        write_json(folder / CONFIG_FILE, self.config.to_dict())
        own = result.resolve() / "base"  # moves with the folder that it lies in
        inside = Path(self.base_source) == own
        save_settings(self.gazed, folder, os.path.relpath(own, folder) if inside else self.base_source, tuned)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint that could not be written, on a full disk say, leaves nothing behind."""
        folder = Path(self.config.output) / f"checkpoint-{self.state.global_step}"
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save and not (folder / STATE).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: the weights are there already, see `load_weights`."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine: Any = self.model_wrapped
        scheduler: Any = self.lr_scheduler
        # What is frozen lies in the base model and need not be written again.
        engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save and not isinstance(scheduler, DeepSpeedSchedulerWrapper):
            torch.save(scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))


class _Epochs(TrainerCallback):
    """Tells the sampler which epoch begins."""

    def __init__(self, order: LengthSampler) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.order.epoch = int((state.epoch or 0.0) + 1e-6)


class _Finite(TrainerCallback):
    """Ends a training whose loss is no longer a number."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise DivergenceError(f"the loss is not finite after {state.global_step} updates; {LOWER}")


@contextmanager
def _whole(parameter: nn.Parameter) -> Iterator[torch.Tensor]:
    """All values of a parameter, which DeepSpeed or FSDP may have divided. Everyone must ask for them."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter
    else:
        yield parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def load_weights(checkpoint: str, gazed: GazedModel, gaze: bool) -> None:
    """The trained weights of a checkpoint, into a model whose parts are switched on but that no engine has divided yet.
    gaze: also those of the gaze model."""
    folder = Path(checkpoint)
    stored = read_fields(folder / SETTINGS_FILE)
    load_parts(folder, gazed.family, stored.get("tuned", dict))
    if gaze:
        assert isinstance(gazed.gaze, AutoGaze)
        own = AutoGaze.from_pretrained(folder / stored.object("gaze").get("folder", str)).state_dict()
        check_weights(folder, shapes(gazed.gaze.state_dict()), shapes(own), against="the model that is trained")
        gazed.gaze.load_state_dict(own)
