"""What `from_pretrained` is told beside the source: device, dtype, the hub's arguments, by either of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import InputError
from .files import check_arguments

NAMES = ("device", "dtype", "device_map", "torch_dtype")


def loading_arguments(
    where: str, options: Mapping[str, Any], own: Sequence[str] = (), as_it_is: Mapping[str, Any] | None = None
) -> tuple[torch.device | None, torch.dtype | str | None, dict[str, Any]]:
    """-> device, dtype (a torch.dtype, "auto" or None), and what is for the hub.

    where: what an error begins with. own: further arguments of the caller, for the error. as_it_is: arguments that may
    ask for what is so anyway, and for nothing else. Raises InputError for unknown arguments and impossible values.
    """
    hub, same = dict(options), as_it_is or {}
    for name, value in same.items():
        if hub.pop(name, value) != value:
            raise InputError(f"{where}: {name} can only be {value!r}; on a GPU, dtype=torch.bfloat16 is what is faster")
    devices = [hub.pop(name, None) for name in ("device", "device_map")]
    dtypes = [hub.pop(name, None) for name in ("dtype", "torch_dtype")]
    check_arguments(hub, (*own, *NAMES, *same), where)
    device, dtype = (next((one for one in given if one is not None), None) for given in (devices, dtypes))
    return _device(device, where), _dtype(dtype, where), hub


def _device(given: Any, where: str) -> torch.device | None:
    """A device, its number, "auto" or {"": device}: what is loaded here is small and lies on one device."""
    device = given[""] if isinstance(given, dict) and set(given) == {""} else given
    if device is None:
        return None
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{where}: device {given!r} is none: give one, such as 'cuda:0', 'cpu' or 'auto'") from error


def _dtype(given: Any, where: str) -> torch.dtype | str | None:
    if given is None or given == "auto" or isinstance(given, torch.dtype):
        return given
    found = getattr(torch, str(given).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(
            f"{where}: dtype {given!r} is none: give a torch.dtype, its name such as 'bfloat16', or 'auto'"
        )
    return found
