"""Tensors and json in one safetensors file, with a checksum: a bit that flipped on a disk is noticed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import InputError
from .files import atomic_write
from .json_text import Fields, parse_object, to_json
from .weights import open_weights

SUM = "sum"


def write_summed(path: Path, tensors: Mapping[str, torch.Tensor], key: str, facts: Mapping[str, Any]) -> None:
    """tensors: on the CPU. facts: json values, kept under `key`. The file takes its name when it is complete."""
    text = to_json(facts)
    with atomic_write(path) as temporary:
        save_file(dict(tensors), temporary, metadata={key: text, SUM: _sum(tensors, text)})
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """safetensors writes the keys of the metadata in any order; the same content is to be the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) == size:
            file.seek(8)
            file.write(text)


def read_summed(path: Path, names: Sequence[str], key: str, what: str) -> tuple[dict[str, torch.Tensor], Fields]:
    """-> the tensors of these names, and the facts. what: what the file should be, in an error.

    Raises InputError for another file, and where the sum is not that of what is there (where all of it is read). A file
    without one, of an older version, is taken as it is.
    """
    try:
        with open_weights(path) as stored:
            stored_metadata: Mapping[str, str] = stored.metadata() or {}
            there = {*stored_metadata, *stored.keys()}
            lacking = [name for name in (key, *names) if name not in there]
            if lacking:
                raise InputError(f"it holds no {lacking[0]!r}")
            tensors = {name: stored.get_tensor(name) for name in names}
            whole = set(names) == set(stored.keys())
    except InputError as error:
        raise InputError(f"{path}: not {what} ({str(error).removeprefix(f'{path}: ')})") from error
    if whole and SUM in stored_metadata and stored_metadata[SUM] != _sum(tensors, stored_metadata[key]):
        raise InputError(f"{path}: damaged (its checksum is another)")
    return tensors, Fields(parse_object(stored_metadata[key], path) | {SUM: stored_metadata.get(SUM)}, path)


def _sum(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    total = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        if tensor.numel():
            values = tensor.contiguous().flatten().view(torch.uint8).numpy()
            total = zlib.crc32(memoryview(values), total)  # type: ignore[arg-type]  # numpy has it
    return f"{total:08x}"
