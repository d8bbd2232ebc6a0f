"""What identifies weights that are in use, looked at without touching them.

`state_dict()` is no harmless look: quantised layers (bitsandbytes) pack their weights anew for it, which changes what
they compute next. So values are read where they lie. What a layer may store in another form from one call to the next
(quantised weights), or would have to be fetched (offloaded ones), is read once: such weights are not trained.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils.modeling import get_non_persistent_buffers
from torch import nn

from ...common.compute.offloading import hook_of, present
from ...common.storage.hashing import fingerprint

_read_once: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[int, str]]] = weakref.WeakKeyDictionary()


def weights_fingerprint(model: nn.Module, decides: Callable[[str], bool]) -> str | None:
    """Of the weights whose names decide; None for weights of a kind that cannot be looked at."""
    plain: dict[str, torch.Tensor] = {}
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path, module in model.named_modules():
            for name, tensor in _own(module):
                full = f"{path}.{name}" if path else name
                if not decides(full):
                    continue
                if tensor.is_meta or _is_quantised(tensor):
                    digest.update(f"{full} {_once(module, name, tensor)}".encode())
                else:
                    plain[full] = tensor
        digest.update(fingerprint(plain).encode())
    except (NotImplementedError, RuntimeError, TypeError):  # tensors of a library's own, without values to read
        return None
    return digest.hexdigest()


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What `state_dict` would hold of the module itself."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    passing = get_non_persistent_buffers(module)
    for name, tensor in module.named_buffers(recurse=False, remove_duplicate=False):
        if name not in passing:
            yield name, tensor


def _is_quantised(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex())


def _once(module: nn.Module, name: str, tensor: torch.Tensor) -> str:
    """Fingerprint of a weight as it was first seen. A layer that gets another weight (by merging LoRA, say) gets
    another tensor, or another hook."""
    hook = hook_of(module)
    holder = id(tensor) if hook is None or not tensor.is_meta else id(hook)
    known = _read_once.setdefault(module, {})
    if known.get(name, (0, ""))[0] != holder:
        with present(module):
            value: Any = getattr(module, name)
            scales = (getattr(getattr(value, "quant_state", None), "absmax", None), getattr(value, "SCB", None))
            parts = {"weight": value.data, **{str(n): scale for n, scale in enumerate(scales) if scale is not None}}
            known[name] = (holder, fingerprint(parts))
    return known[name][1]
