"""Safetensors checkpoints of foreign layouts: every key and shape is checked, and no tensor is held twice.

A model is built without memory for its parameters and then filled tensor by tensor, on the device and in the dtype
where it will stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from torch import nn

from ...common.errors import InputError, first_line
from ...common.storage.files import find_file, output_folder, read_fields
from ...common.storage.json_text import shown
from ...common.storage.weights import check_weights, open_weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Written by older versions of transformers, computed by every model itself.
HARMLESS = re.compile(r"(rotary_emb\.inv_freq|position_ids)$")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not yet read. shown: its key with the folder that it was found in."""

    path: Path
    key: str
    shown: str
    shape: tuple[int, ...]
    dtype: str


Weights = dict[str, StoredTensor]  # by name in the model


def find_weights(source: str | Path, folder: str = "", **hub: Any) -> Weights:
    """The tensors of a checkpoint folder (or of a sub-folder of it), sharded or not, by their stored keys."""
    prefix = f"{folder}/" if folder else ""
    index = find_file(source, prefix + INDEX, required=False, **hub)
    if index is not None:
        listed = read_fields(index).get("weight_map", dict[str, str])
        outside = [name for name in listed.values() if Path(name).name != name]
        if outside:
            raise InputError(f"{index}: 'weight_map' names {shown(outside[0])}, which is not a file of this folder")
        paths = [find_file(source, prefix + name, **hub) for name in sorted(set(listed.values()))]
    else:
        paths = [find_file(source, prefix + SINGLE, required=False, **hub)]
    weights: Weights = {}
    for path in paths:
        if path is None:
            raise InputError(f"{source}: neither {prefix}{SINGLE} nor {prefix}{INDEX}; other weights are not read")
        with open_weights(path) as file:
            for key in file.keys():  # noqa: SIM118, not a dict
                part = file.get_slice(key)
                weights[key] = StoredTensor(path, key, prefix + key, tuple(part.get_shape()), part.get_dtype())
    return weights


def chosen_dtype(dtype: torch.dtype | str | None, weights: Weights, name: str, source: str | Path) -> torch.dtype:
    """The dtype to load in; None and "auto": that of the stored tensor `name`."""
    if dtype in (None, "auto"):
        stored = weights[name].dtype if name in weights else "F32"
        if stored not in DTYPES:
            raise InputError(
                f"{source}: weights of type {stored} are not supported; quantised checkpoints are not read"
            )
        return DTYPES[stored]
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {dtype!r}: expected auto, float32, float16 or bfloat16")
    return found


@contextmanager
def usable(source: str | Path) -> Iterator[None]:
    """Inside, a configuration whose values cannot be used is an InputError: they come as errors of many types."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{source}: the configuration cannot be used: {first_line(error)}") from error


def without_memory() -> Any:
    """Context in which modules are built with parameters that take no memory; buffers are real."""
    return init_empty_weights(include_buffers=False)


@dataclass(frozen=True)
class Wanted:
    """A parameter to be filled. stored: its name among the weights; shown: what the checkpoint calls it.

    optional: it may be missing, because nothing that is used follows it; then it is what it is in a new LayerNorm.
    """

    stored: str
    shown: str
    optional: bool = False


def fill(
    model: nn.Module,
    weights: Weights,
    source: str | Path,
    wanted: Mapping[str, Wanted],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype,
) -> None:
    """Puts the stored tensors into a model that was built without memory. wanted: by name in the model.

    Raises InputError listing what is missing, left over or of another shape.
    """
    _check(model, weights, source, wanted)
    files: dict[Path, list[tuple[str, str]]] = {}
    for name, want in wanted.items():
        if want.stored in weights:
            files.setdefault(weights[want.stored].path, []).append((name, weights[want.stored].key))
        else:
            blank = torch.zeros if name.endswith("bias") else torch.ones
            _put(model, name, blank(model.get_parameter(name).shape, device=device, dtype=dtype))
    for path, entries in files.items():
        with open_weights(path) as file:
            for name, key in entries:
                # Always a copy: what safetensors returns may be a view of the file.
                _put(model, name, file.get_tensor(key).to(device=device, dtype=dtype, copy=True))


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))


def _check(model: nn.Module, weights: Weights, source: str | Path, wanted: Mapping[str, Wanted]) -> None:
    used = {want.stored for want in wanted.values()}
    found = {name: tensor for name, tensor in weights.items() if name in used or not HARMLESS.search(name)}
    check_weights(
        source,
        {want.stored: model.get_parameter(name).shape for name, want in wanted.items()},
        {name: tensor.shape for name, tensor in found.items()},
        optional={want.stored for want in wanted.values() if want.optional},
        shown={name: tensor.shown for name, tensor in found.items()}
        | {want.stored: want.shown for want in wanted.values()},
        against="the configuration",
    )


def save_weights(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Sharded safetensors with their index; tied tensors are written once."""
    save_torch_state_dict(dict(tensors), output_folder(folder), max_shard_size="5GB")
