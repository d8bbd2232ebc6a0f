"""What is trained: whole parts, or LoRA in them, each with its own learning rate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..common.errors import InputError
from ..gaze.autogaze.model import AutoGaze
from ..gaze.selectors.base import selector_name
from ..mllm.model import GazedModel
from .config import PARTS, AdapterConfig, PartConfig

LAYERS = r"(?:layers|layer|blocks)\.\d+\."  # how the families name the list of a transformer's layers
LOSS_HEAD = "task_loss_prediction_head"  # of the gaze model: predicts losses for the stop rule


def switch_on(model: GazedModel, plans: Mapping[str, PartConfig], lora: AdapterConfig) -> Any | None:
    """Freezes the model, then puts LoRA in and lets train what the plans say. -> the LoraConfig, if there is one."""
    family = model.family
    plans = {"gaze": PartConfig(), **plans}
    if plans["gaze"].mode != "off" and not isinstance(model.gaze, AutoGaze):
        raise InputError(f"{selector_name(model.gaze)} has no weights to train: take a gaze model (--gaze)")
    targets = [_lora_targets(model, part) for part, plan in plans.items() if plan.mode == "lora"]
    config = None
    if targets:
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # need not be whole
            lora_dropout=lora.dropout,
            target_modules="|".join(targets),
        )
        inject_adapter_in_model(config, family.base)
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base.")
        if ".lora_" not in name:
            taught = LOSS_HEAD not in name  # by nothing here, so it must not decay either
            parameter.requires_grad_(plans[part_of(model, name)].mode == "full" and taught)
    return config


def _lora_targets(model: GazedModel, part: str) -> str:
    """A pattern that matches the names of the linear layers inside a part's transformer layers."""
    family = model.family
    if part not in family.PREFIXES or part == "projector":
        raise InputError(f"LoRA is for the tower and the LLM; train the {part} 'full'")
    found = sorted(
        {
            name.rsplit(".", 1)[1]
            for name, module in family.base.named_modules()
            if isinstance(module, nn.Linear)
            and name.startswith(family.PREFIXES[part])
            and re.search(rf"\.{LAYERS}", name)
        }
    )
    if not found:
        raise InputError(f"the {part} has no linear layers for LoRA: train it 'full'")
    starts = "|".join(re.escape(start) for start in family.PREFIXES[part])
    return rf"(?:{starts}).*{LAYERS}.*\.(?:{'|'.join(found)})"


def part_of(model: GazedModel, name: str) -> str:
    """The part of a parameter, by its name in the base, or in the wrapped model if it is the gaze model's."""
    return "gaze" if name.startswith("gaze.") else model.family.part_of(name)


def trained_groups(
    parameters: Sequence[tuple[str, nn.Parameter]],
    model: GazedModel,
    plans: Mapping[str, PartConfig],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Optimiser groups: per part its learning rate; weights decay, biases, norms and other vectors do not.

    parameters: by their names in the base, of any shard of them. Parts are in the order of `plans`.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor in its place
            groups.setdefault((part_of(model, name), len(shape) > 1), []).append(parameter)
    return [
        {"params": members, "lr": plans[part].lr, "weight_decay": weight_decay if decays else 0.0, "name": part}
        for part in plans
        for decays in (True, False)
        if (members := groups.get((part, decays)))
    ]


def set_precision(model: GazedModel, precision: Literal["bf16", "fp32"], mixed: bool) -> None:
    """fp32: everything. bf16: frozen weights and everything that DeepSpeed keeps a precise copy of; what is trained
    without it (mixed: by autocast) stays in float32, because small steps would be lost in bf16."""
    low = torch.bfloat16 if precision == "bf16" else torch.float32
    for parameter in model.family.base.parameters():
        parameter.data = parameter.data.to(torch.float32 if mixed and parameter.requires_grad else low)
    if isinstance(model.gaze, nn.Module) and any(parameter.requires_grad for parameter in model.gaze.parameters()):
        model.gaze.to(torch.float32 if mixed else low)


def part_sizes(model: GazedModel) -> dict[str, dict[str, int]]:
    """Parameters of each part, and how many of them are trained."""
    sizes = {part: {"parameters": 0, "trained": 0} for part in (*PARTS, "gaze")}
    for name, parameter in model.named_parameters():
        part = part_of(model, name.removeprefix("base."))
        sizes[part]["parameters"] += parameter.numel()
        sizes[part]["trained"] += parameter.numel() * parameter.requires_grad
    return sizes
