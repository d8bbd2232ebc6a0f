"""The trainer: transformers' own, with this package's order of samples, optimiser groups and files.

What this package writes is safetensors and json. A checkpoint also holds what transformers and DeepSpeed need to go on
from it (optimiser, scheduler, random states), which these libraries write with torch.save and, DeepSpeed's apart, read
back with weights_only. It is read from the training's own output folder only, and nothing but --resume reads it.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..files import output_folder, read_json, write_json
from ..mllm.tuned import load_parts, save_parts
from ..mllm.wrap import SETTINGS_FILE, save_settings
from . import processes
from .config import FinetuneConfig
from .dataset import ConversationDataset, LengthSampler, collator
from .model import TrainedModel
from .parts import trained_groups

TOLD_FILE = "finetune.json"


class GazedTrainer(Trainer):
    """base_source: where the base model is found: a hub id or an absolute path. lora: the LoraConfig in use."""

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
        batch = config.batch_size * config.accumulate * processes.count()
        self.order = LengthSampler(train.lengths, batch, config.seed, config.group_by_length)
        pad_id = model.gazed.tokenizer.pad_token_id
        pad_id = model.gazed.tokenizer.eos_token_id if pad_id is None else pad_id
        super().__init__(
            model,
            arguments,
            collator(pad_id, config.packing),
            train,
            evaluation,
            callbacks=[_Epochs(self.order)],
        )
        if not config.progress:
            self.remove_callback(PrinterCallback)

    # -- order and optimiser -------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        return self.order

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, None)
            named = list(self.trained.base_parameters())
            groups = trained_groups(named, self.gazed, self.config.parts, self.config.weight_decay)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    # -- saving --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained parts, gaze model and settings; `autogaze_mllm.load` reads them. Everyone must call it."""
        tensors = {}
        for name, parameter in self.trained.base_parameters():
            if parameter.requires_grad:
                with _whole(parameter):  # one at a time: that much room there is
                    if self.args.should_save:
                        tensors[name] = parameter.detach().to("cpu", copy=True)
        if not self.args.should_save:
            return
        result = Path(self.config.output)
        folder = output_folder(output_dir or result)
        (folder / SETTINGS_FILE).unlink(missing_ok=True)
        tuned = save_parts(folder, self.gazed.family, tensors, self.lora)
        write_json(folder / TOLD_FILE, self.config.to_dict())
        own = result.resolve() / "base"  # moves with the folder that it lies in
        inside = Path(self.base_source) == own
        save_settings(self.gazed, folder, os.path.relpath(own, folder) if inside else self.base_source, tuned)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_parts(folder, self.gazed.family, read_json(folder / SETTINGS_FILE)["tuned"])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # What is frozen lies in the base model and need not be written again.
        engine: Any = self.model_wrapped
        save = engine.save_checkpoint
        engine.save_checkpoint = lambda folder: save(folder, exclude_frozen_parameters=True)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            del engine.save_checkpoint


class _Epochs(TrainerCallback):
    """Tells the sampler which epoch begins."""

    def __init__(self, order: LengthSampler) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.order.epoch = int((state.epoch or 0.0) + 1e-6)


def _whole(parameter: nn.Parameter) -> Any:
    """Context in which a parameter that DeepSpeed divided has all its values."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
