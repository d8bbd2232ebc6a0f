"""Safetensors files of weights: read, written, and checked against the model that they are for.

What does not fit is explained in the same words everywhere: what is missing, what is left over, what is of another
shape.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..errors import InputError, first_line, listed
from .files import atomic_write

SHOWN = 4  # keys of each kind that an error names


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU. Raises InputError when it cannot be read."""
    with _readable(path):
        return load_file(path)


def read_pickled_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file of `torch.save`, on the CPU and mapped from the file where its format allows that. Nothing
    but tensors is unpickled. Raises InputError for anything else."""
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):  # with the format of torch 1.6 and later
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: damaged, or it holds objects that would run code; only tensors are read") from error
    except Exception as error:  # damaged files come as errors of many types
        raise InputError(f"{path}: damaged or not a file of torch.save ({first_line(error)})") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path}: expected tensors by name, a state dict")
    return {str(name): value for name, value in found.items()}


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """The file as safetensors opens it: tensors are read one by one. InputError for what cannot be read, then too."""
    with _readable(path), safe_open(path, framework="pt") as file:
        yield file


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replaces the file only when the new one is complete."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(stored, temporary, metadata={"format": "pt"})


def check_weights(
    source: str | Path,
    expected: Mapping[str, Iterable[int]],
    stored: Mapping[str, Iterable[int]],
    *,
    optional: Collection[str] = (),
    shown: Mapping[str, str] | None = None,
    against: str = "config.json",
) -> None:
    """Raises InputError, naming `source`, where the shapes of stored weights are not those that a model expects.

    expected, stored: shapes by name. optional: names that may be missing. shown: what an error calls a name, where that
    is another one. against: what the weights have to fit.
    """
    names = shown or {}
    faults = {
        "missing": [names.get(name, name) for name in expected if name not in stored and name not in optional],
        "left over": [names.get(name, name) for name in stored if name not in expected],
        "of another shape": [
            f"{names.get(name, name)} (stored {_sides(stored[name])}, expected {_sides(shape)})"
            for name, shape in expected.items()
            if name in stored and tuple(stored[name]) != tuple(shape)
        ],
    }
    if any(faults.values()):
        text = "; ".join(f"{kind}: {listed(sorted(keys), SHOWN)}" for kind, keys in faults.items() if keys)
        raise InputError(f"{source}: the weights do not fit {against}: {text}")


def check_finite(source: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises InputError, naming `source`, for a tensor with numbers that are not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{source}: {name} holds numbers that are not finite")


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        try:
            path.open("rb").close()
        except OSError as unreadable:  # safetensors says of each that there is no such file
            raise InputError(f"{path}: cannot be read ({unreadable.strerror})") from error
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from error


def _sides(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
