"""What identifies files and weights, and where caches lie."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import InputError

SAMPLES = 2048  # values of each tensor that a fingerprint reads


def default_folder() -> Path:
    """Raises InputError where nobody says where it could be."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "autogaze_mllm"
    except RuntimeError as error:
        raise InputError("there is no home folder to keep a cache in: set HOME, or XDG_CACHE_HOME") from error


@functools.lru_cache(maxsize=256)
def _content_hash(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def content_hash(path: str | Path) -> str:
    """Hash of a file's bytes; read again only when its size or time of change is another."""
    try:
        facts = os.stat(path)
        return _content_hash(os.path.realpath(path), facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: no such file" if not Path(path).exists() else f"{path}: {error.strerror}") from error


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash over names, shapes, types and evenly spread values of a state dict.

    Reading every value of a large tower for each question would cost more than it saves; training changes all of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(len(flat) // SAMPLES, 1)].to("cpu", torch.float64)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
