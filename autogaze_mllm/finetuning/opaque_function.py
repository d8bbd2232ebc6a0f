"""A part of a model that is one call from outside, however often its parameters are used inside.

Engines that shard parameters or sum gradients in buckets (DeepSpeed ZeRO, DDP) need every process to do the same things
in the same order, or they hang or add up wrong numbers. Seen from outside a node is one call, after which every
parameter of it has a gradient (zeros where it was unused), always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class OneNode(torch.autograd.Function):
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
