"""The wrapped model as it is trained: everything before the LLM's layers is one module, so that samples may differ.

Samples with several videos, one, an image or none run the tower a different number of times, and not the same parts of
it. Engines that shard parameters or sum gradients in buckets (DeepSpeed ZeRO, DDP) need every process to do the same
things in the same order, or they hang or add up wrong numbers. So that part is run inside one autograd node: seen from
outside every step is one call, after which every trainable parameter of it has a gradient (zeros where it was unused),
always in the same order. For ZeRO-3 the module is a leaf: its parameters are gathered and released together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..mllm.families import Family, Media
from ..mllm.model import GazedModel
from .conversation import IGNORED


class _OneNode(torch.autograd.Function):
    """Runs a function and keeps its graph to itself; gradients go to `anchor` and `parameters`, zeros if unused."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], torch.Tensor], anchor: torch.Tensor, *parameters: torch.Tensor) -> Any:
        with torch.enable_grad():
            output = run()
        ctx.output, ctx.parameters, ctx.anchor_shape = output, parameters, anchor.shape
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        output, parameters = ctx.output, ctx.parameters
        ctx.output = ctx.parameters = None  # lets go of the inner graph
        found: Sequence[torch.Tensor | None] = [None] * len(parameters)
        if output.requires_grad and parameters:
            found = torch.autograd.grad(output, parameters, gradient, allow_unused=True)
        filled = [
            torch.zeros_like(parameter) if grad is None else grad
            for parameter, grad in zip(parameters, found, strict=True)
        ]
        return None, gradient.new_zeros(ctx.anchor_shape), *filled


class Embedder(nn.Module):
    """Token embeddings, tower and projector: prompts and media -> what the LLM's layers take (B, L, D)."""

    _gazed: GazedModel  # outside the module tree

    def __init__(self, gazed: GazedModel, modules: Sequence[nn.Module], loose: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.loose = nn.ParameterList(loose)
        object.__setattr__(self, "_gazed", gazed)

    def forward(self, anchor: torch.Tensor, input_ids: torch.Tensor, media: Sequence[Sequence[Media]]) -> torch.Tensor:
        """anchor: a tensor that needs a gradient. Its own comes after those of all parameters, which is how DeepSpeed
        sees that they are complete."""

        def run() -> torch.Tensor:
            return self._gazed.embed(input_ids, media)

        if not torch.is_grad_enabled():
            return run()
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return _OneNode.apply(run, anchor.clone(), *trainable)


class TrainedModel(nn.Module):
    """forward gives {"loss"}. The tree holds the base's own modules, in another arrangement; nothing is copied.

    The gaze model is not part of it: it is frozen, and its results are what `media` holds.
    """

    gazed: GazedModel  # outside the module tree
    accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch, which counts all processes and accumulation

    def __init__(self, gazed: GazedModel) -> None:
        super().__init__()
        object.__setattr__(self, "gazed", gazed)
        base, family = gazed.family.base, gazed.family
        modules, loose, rest = _divided(base, "", family, base.get_input_embeddings())
        self.embedder = Embedder(gazed, modules, loose)
        self.llm = nn.ModuleList(rest)
        self.config = copy.deepcopy(gazed.config)  # read for DeepSpeed's "auto" sizes, and changed by the trainer
        self.names = {id(parameter): name for name, parameter in base.named_parameters()}

    def train(self, mode: bool = True) -> TrainedModel:
        super().train(mode)
        self.gazed.family.base.train(mode)
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        media: Sequence[Sequence[Media]],
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        anchor = torch.zeros(1, device=input_ids.device, requires_grad=True)
        embedded = self.embedder(anchor, input_ids, media)
        # Only where something is learnt are logits made: over a large vocabulary they would be the largest tensor.
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        wanted = (targets != IGNORED).any(dim=0).nonzero().flatten()
        output = self.gazed.family.base(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=wanted,
            use_cache=False,
        )
        logits, chosen = output.logits.float().flatten(0, 1), targets[:, wanted].flatten()
        count = (chosen != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return {"loss": F.cross_entropy(logits, chosen, ignore_index=IGNORED, reduction="sum") / count}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Checkpoints leave frozen parameters out; all others must be there."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing = sorted(trained - state_dict.keys())
        if strict and missing:
            raise RuntimeError(f"the checkpoint lacks {missing[0]} and {len(missing) - 1} more")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by their names in the base."""
        for parameter in self.parameters():
            yield self.names[id(parameter)], parameter


def _divided(
    module: nn.Module, path: str, family: Family, embedding: nn.Module
) -> tuple[list[nn.Module], list[nn.Parameter], list[nn.Module]]:
    """What lies below `module`: the largest modules that belong before the LLM's layers, loose parameters that do, and
    the largest modules that hold nothing of the kind. path: of the module in the base, with its dot."""
    starts = (*family.PARTS["tower"], *family.PARTS["projector"])

    def before(name: str, child: nn.Module) -> bool:
        return child is embedding or f"{name}.".startswith(starts)

    modules: list[nn.Module] = []
    rest: list[nn.Module] = []
    loose = [part for name, part in module.named_parameters(path[:-1], recurse=False) if name.startswith(starts)]
    for name, child in module.named_children():
        name = path + name
        if before(name, child):
            modules.append(child)
        elif any(before(deep, inner) for deep, inner in child.named_modules(prefix=name)):
            more = _divided(child, f"{name}.", family, embedding)
            modules, loose, rest = modules + more[0], loose + more[1], rest + more[2]
        else:
            rest.append(child)
    return modules, loose, rest
