"""What tools expect of a transformers model, answered by the base: trainers, peft and accelerate ask for it.

A wrapped model is a plain module around the base. Attributes that it does not have are the base's own
(`generation_config`, `gradient_checkpointing_enable`, `hf_device_map`, ...); where the base is no transformers model
itself but holds one, those of its LLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...common.errors import InputError

if TYPE_CHECKING:
    from ..families import Family

IGNORED = -100  # label of what is not learnt
# What the LLM inside a base answers for it.
OF_THE_LLM = frozenset(
    {
        "activation_checkpointing_disable",
        "activation_checkpointing_enable",
        "can_generate",
        "disable_input_require_grads",
        "enable_input_require_grads",
        "generation_config",
        "get_output_embeddings",
        "gradient_checkpointing_disable",
        "gradient_checkpointing_enable",
        "is_activation_checkpointing",
        "is_gradient_checkpointing",
        "main_input_name",
        "prepare_inputs_for_generation",
        "supports_gradient_checkpointing",
    }
)


class UnwrappedError(InputError, AttributeError):
    """The model was unwrapped; also an AttributeError, so that `hasattr` says no."""


class PretrainedInterface(nn.Module):
    """The half of a wrapped model that tools look at."""

    @property
    def family(self) -> Family:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules or name in self.__dict__.get("_parameters", {}) or name in self.__dict__.get("_buffers", {}):
            return super().__getattr__(name)
        if self.__dict__.get("_family", self) is None and not name.startswith("__"):
            raise UnwrappedError("this model was unwrapped: use the base model that unwrap() gave, or wrap it again")
        base = modules.get("base")
        if base is not None and not name.startswith("__"):
            if hasattr(base, name):
                return getattr(base, name)
            if name in OF_THE_LLM:
                return getattr(self.family.language_model, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def config(self) -> Any:
        return self.family.config

    @property
    def name_or_path(self) -> str:
        return getattr(self.config, "name_or_path", "") or ""

    def get_input_embeddings(self) -> Any:
        return self.family.base.get_input_embeddings()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """As transformers counts them, of base and gaze model together."""
        skipped = {id(self.get_input_embeddings().weight)} if exclude_embeddings else set()
        counted = [part for part in self.parameters() if id(part) not in skipped]
        return sum(part.numel() for part in counted if part.requires_grad or not only_trainable)

    def floating_point_ops(self, inputs: Any, exclude_embeddings: bool = True) -> int:
        """A trainer's estimate: 6 operations for each parameter and token."""
        return 6 * inputs["input_ids"].numel() * self.num_parameters(exclude_embeddings=exclude_embeddings)

    def learnt_labels(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Labels (default: the ids themselves) without those at visual placeholders and at padding, which are -100."""
        ignored = self.family.is_visual(input_ids)
        ignored = ignored if attention_mask is None else ignored | (attention_mask == 0)
        labels = input_ids if labels is None else labels
        return labels.masked_fill(ignored.to(labels.device), IGNORED)

    def generate_batch(self, *_: Any, **__: Any) -> None:
        raise InputError("continuous batching reads ids alone: prepare() several prompts, and generate() answers them")

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        raise InputError("save_pretrained(folder) writes base, gaze model and settings: upload that folder")

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Weights that are tied (embeddings and head) are told apart: a trainer writes this as it is, and safetensors
        takes no tensor under two names."""
        found = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        if not keep_vars:
            first = dict(self.named_parameters()).keys()
            for name, _ in self.named_parameters(remove_duplicate=False):
                if name not in first:
                    found[prefix + name] = found[prefix + name].clone()
        return found
