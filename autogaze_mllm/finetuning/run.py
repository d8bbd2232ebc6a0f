"""finetune(): from a configuration to a fine-tuned folder, in one process or many."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerState, TrainingArguments, set_seed

from ..common.compute import distributed
from ..common.errors import DivergenceError, InputError
from ..common.storage.files import output_folder, written_by_others
from ..common.storage.hashing import default_folder
from ..common.storage.locks import run_lock
from ..gaze.index_info import check_finds, read_index
from ..mllm.model import GazedModel
from .benchmark_eval import BenchmarkEval, chosen_benchmark
from .checkpoints import STATE, identify, latest_checkpoint
from .config import FinetuneConfig
from .data.dataset import ConversationDataset
from .data.media_store import GazedCache, MediaStore
from .data.samples import Sample, load_samples
from .deepspeed import chosen_engine, offloads, zero_stage
from .memory_estimate import Load, ModelDims, estimate_memory
from .parts import part_sizes, set_precision, switch_on
from .trained_model import TrainedModel


@dataclass
class Prepared:
    """All that a training needs, and that a dry run tells about."""

    model: GazedModel
    config: FinetuneConfig
    train: ConversationDataset
    evaluation: ConversationDataset | None
    videos: dict[str, int]
    lora: Any | None
    precision: Literal["bf16", "fp32"]
    deepspeed: dict[str, Any] | None

    def steps(self, count: int) -> int:
        """Updates of the whole training, by `count` processes."""
        batch = self.config.batch_size * count
        per_epoch = math.ceil(math.ceil(len(self.train) / batch) / self.config.accumulate)
        return self.config.max_steps or math.ceil(self.config.epochs * per_epoch)


def training_device(cpu: bool) -> torch.device:
    """The device of this process."""
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(distributed.local_rank())
    return torch.device("cuda", distributed.local_rank())


def chosen_precision(config: FinetuneConfig, device: torch.device) -> Literal["bf16", "fp32"]:
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def prepare(model: GazedModel, config: FinetuneConfig) -> Prepared:
    """Switches parts on, gazes the videos, counts tokens. Changes what of the model is trainable, and its precision."""
    engine = chosen_engine(config)
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise InputError("this model holds LoRA of an earlier training: merge it first (`autogaze-mllm merge`)")
    if config.packing and not model.family.packing:
        raise InputError(
            f"{model.family.title}: samples cannot be packed into one row, because its LLM is told types or positions "
            "of what it reads; leave packing out"
        )
    samples = load_samples(config.data, config.media_root)
    held_out = load_samples(config.eval_data, config.media_root) if config.eval_data else []
    progress = config.progress and distributed.rank() == 0
    precision = chosen_precision(config, model.device)
    set_seed(config.seed)  # LoRA begins with the same random values everywhere
    lora = switch_on(model, config.parts, config.lora)
    set_precision(model, precision, mixed=engine is None)
    # Entries of this training must not push each other out, so the folder has no limit.
    model.cache = GazedCache(config.cache or default_folder() / "finetune", limit=1 << 62, index=config.index)
    if config.index is not None:  # in the precision of the training now
        check_finds(config.index, read_index(config.index), model.cache_facts()[0])
    store = MediaStore(model, model.cache, keep_videos=config.trains_gaze)
    videos = store.prepare([*samples, *held_out], progress)

    def dataset(chosen: Sequence[Sample]) -> ConversationDataset:
        return ConversationDataset(
            chosen, model, store, config.max_length, config.too_long, config.packing, progress=progress
        )

    return Prepared(
        model,
        config,
        dataset(samples),
        dataset(held_out) if held_out else None,
        videos,
        lora,
        precision,
        engine,
    )


def training_arguments(config: FinetuneConfig, precision: str, engine: dict[str, Any] | None, cpu: bool) -> Any:
    """transformers' arguments; making them starts communication between the processes."""
    return TrainingArguments(
        output_dir=str(output_folder(config.output)),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=max(plan.lr for plan in config.parts.values() if plan.mode != "off"),
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        max_grad_norm=config.clip,
        weight_decay=config.weight_decay,
        bf16=precision == "bf16",
        deepspeed=engine,
        use_cpu=cpu,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=config.save_total_limit,
        eval_strategy="steps" if config.eval_steps else "no",
        eval_steps=config.eval_steps or None,
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=config.workers,
        dataloader_persistent_workers=config.workers > 0,
        dataloader_pin_memory=not cpu,
        ddp_find_unused_parameters=False,
        seed=config.seed,
        data_seed=config.seed,
        report_to=config.report,
        disable_tqdm=not config.progress,
    )


def finetune(model: GazedModel, config: FinetuneConfig, base_source: str | None = None) -> dict[str, Any]:
    """Trains, and leaves in `config.output` what `autogaze_mllm.load` reads. -> steps, losses, folder.

    base_source: where the base model was loaded from; None: it is saved with the result. In a launch of several
    processes everyone calls it; `model` may be used as before afterwards, except under DeepSpeed.
    """
    with run_lock(output_folder(config.output)) if distributed.is_first() else nullcontext():
        return _finetune(model, config, base_source)


def _finetune(model: GazedModel, config: FinetuneConfig, base_source: str | None) -> dict[str, Any]:
    from .trainer import LOWER, GazedTrainer, load_weights

    resume, asked = latest_checkpoint(config), chosen_benchmark(config)
    device = training_device(config.cpu)
    precision = chosen_precision(config, device)
    engine = chosen_engine(config)
    arguments = training_arguments(config, precision, engine, device.type == "cpu")
    _ = arguments.device  # processes know each other from here on
    identify(model, config, resume)
    source = _base_source(model, Path(config.output), base_source)
    prepared = prepare(model, config)
    if resume is not None:
        load_weights(resume, model, config.trains_gaze)
    if config.gradient_checkpointing:
        _checkpoint_layers(model, reentrant=zero_stage(engine) == 3)
    trained = TrainedModel(model, config.rollouts if config.trains_gaze else None)
    if zero_stage(engine) == 3:
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(trained, [type(trained.embedder)])
    trainer = GazedTrainer(trained, arguments, config, prepared.train, prepared.evaluation, source, prepared.lora)
    if asked is not None:
        trainer.benchmark = BenchmarkEval(model, config, *asked)
    loss = _train(trainer, resume, prepared.steps(distributed.count()))
    if not math.isfinite(loss):
        raise DivergenceError(f"the loss is not finite after {trainer.state.global_step} updates; {LOWER}")
    trainer.save_model()
    history = list(trainer.state.log_history)
    result: dict[str, Any] = {
        "output": config.output,
        "steps": trainer.state.global_step,
        "loss": loss,
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "videos": prepared.videos["videos"],
        "gazed": prepared.videos["gazed"],
    }
    if prepared.evaluation is not None:
        last = trainer.evaluate()
        for one, all_ in (("eval_loss", "eval_losses"), ("eval_accuracy", "eval_accuracies")):
            if one in last:
                result |= {one: last[one], all_: [entry[one] for entry in history if one in entry]}
    model.eval()
    distributed.finish()
    return result


def _train(trainer: Any, resume: str | None, steps: int) -> float:
    """-> the mean loss. Who goes on from the last update is at the end already: transformers would make one more."""
    if resume is not None:
        state = TrainerState.load_from_json(str(Path(resume) / STATE))
        if state.global_step >= steps:
            trainer.state = state
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            return sum(losses) / len(losses) if losses else 0.0
    return trainer.train(resume_from_checkpoint=resume).training_loss


def _base_source(model: GazedModel, output: Path, given: str | None) -> str:
    """Where the base model will be found. One that has no place of its own is written into the output folder."""
    if given is not None:
        return os.path.abspath(given) if Path(given).is_dir() else given
    own = output.resolve() / "base"
    if distributed.rank() == 0 and not own.exists():
        part = output_folder(own.with_name(".base.part"))
        with written_by_others(part):
            model.family.base.save_pretrained(part)
        model.preprocessing.save_pretrained(part)
        part.replace(own)
    distributed.wait()
    return str(own)


def _checkpoint_layers(model: GazedModel, reentrant: bool) -> None:
    """Activations inside the layers are computed anew in the backward pass. reentrant: how ZeRO-3 wants it, whose
    weights are empty between the passes; the tower lies inside one autograd node, where only the other way works."""
    parts: tuple[tuple[Any, bool], ...] = ((model.family.tower, False), (model.family.language_model, reentrant))
    for part, kind in parts:
        # Later versions of transformers have it under a new name.
        name = "activation" if hasattr(part, "activation_checkpointing_enable") else "gradient"
        getattr(part, f"{name}_checkpointing_enable")(**{f"{name}_checkpointing_kwargs": {"use_reentrant": kind}})


def model_shape(model: GazedModel) -> ModelDims:
    settings, tower = model.settings, model.tower
    block_causal = tower.attn_type == "block_causal" and not tower.frame_independent
    return ModelDims.of(model.config, min(settings.frames, settings.chunk_frames) if block_causal else 1)


def describe(prepared: Prepared, count: int = 1) -> dict[str, Any]:
    """What a dry run tells: parameters, tokens, memory and steps of a training by `count` processes."""
    config, train = prepared.config, prepared.train
    visual = train.visual_tokens()
    ranked = sorted(range(len(train)), key=lambda number: -train.lengths[number])[: config.batch_size]
    members = [member for number in ranked for member in train.groups[number]]
    # A batch is padded to its longest sample; packs are put into one row.
    tokens = sum(train.lengths[n] for n in ranked) if config.packing else config.batch_size * train.lengths[ranked[0]]
    times = config.rollouts.rollouts if config.trains_gaze else 1
    load = Load(
        times * tokens,
        times * sum(train.store.patches(train.samples[member]) for member in members),
        times * sum(train.learnt[member] for member in members),
    )
    sizes = part_sizes(prepared.model)
    memory = estimate_memory(
        model_shape(prepared.model),
        sizes,
        config.parts,
        load,
        bf16=prepared.precision == "bf16",
        processes=count,
        zero=zero_stage(prepared.deepspeed),
        offload=offloads(prepared.deepspeed),
        checkpointing=config.gradient_checkpointing,
    )
    return {
        "samples": len(train.samples),
        "packs": len(train) if config.packing else None,
        "videos": prepared.videos["videos"],
        "gazed": prepared.videos["gazed"],
        "parts": {
            part: {
                **size,
                **({"mode": config.parts[part].mode, "lr": config.parts[part].lr} if part in config.parts else {}),
            }
            for part, size in sizes.items()
        },
        "tokens": _spread(train.sample_lengths),
        "visual_tokens": _spread(visual),
        "learnt_tokens": _spread(train.learnt),
        "memory_gib": memory.to_dict(),
        "precision": prepared.precision,
        "processes": count,
        "steps": prepared.steps(count),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    found = sorted(values)
    return {
        "min": found[0],
        "median": found[len(found) // 2],
        "p95": found[min(len(found) * 95 // 100, len(found) - 1)],
        "max": found[-1],
        "sum": sum(found),
    }
