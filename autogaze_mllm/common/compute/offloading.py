"""Weights that accelerate keeps elsewhere (cpu_offload, disk_offload, dispatch_model, device_map).

A module's own forward finds them where it needs them. What reads a weight without calling the module that holds it does
so inside `present`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn

_bringing_back = Lock()


def execution_device(module: nn.Module) -> torch.device:
    """Where the module computes."""
    for part in module.modules():
        for hook in _hooks(part):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
        for weight in part.parameters(recurse=False):
            return weight.device
    return torch.device("cpu")


def followed(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """x where the module computes, if accelerate has dispatched the model."""
    return x if hook_of(module) is None else x.to(execution_device(module))


@contextmanager
def present(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules' own parameters have their values. What was read of them stays."""
    with_hooks = [(module, hook) for module in modules if (hook := hook_of(module)) is not None]
    for module, hook in with_hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in reversed(with_hooks):
            hook.post_forward(module, None)


def bring_back(module: nn.Module) -> None:
    """Takes a module's weights back into memory, to where it computes, for good."""
    with _bringing_back:
        if any(part.is_meta for part in module.parameters()):
            from accelerate.hooks import remove_hook_from_submodules

            device = execution_device(module)
            remove_hook_from_submodules(module)
            module.to(device)


def has_all_weights(module: nn.Module) -> bool:
    """Whether every weight is in memory or kept by accelerate."""
    return all(_kept(part) for part in module.modules() if any(own.is_meta for own in part.parameters(recurse=False)))


def _kept(module: nn.Module) -> bool:
    return any(getattr(hook, "offload", False) for hook in _hooks(module))


def hook_of(module: nn.Module) -> Any | None:
    """accelerate's hook of a module, which chains those that were put there. accelerate has no public way to ask for
    it: `align_module_device`, its own `present`, passes over chains."""
    return getattr(module, "_hf_hook", None)


def _hooks(module: nn.Module) -> list[Any]:
    hook = hook_of(module)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
