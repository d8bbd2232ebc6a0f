"""Keys of stored configurations by which a file would have code fetched and run.

Code that lies beside a model (`auto_map`) is never run: transformers gets trust_remote_code=False everywhere. But it
also takes attention and expert kernels from a repository of the hub where a configuration names one, and these are
programs, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError
from .json_text import shown

KERNELS = ("attn_implementation", "experts_implementation")


def check_no_code(stored: Any, path: str | Path) -> None:
    """Raises InputError where a configuration, at any depth, names a repository to take code from."""
    for key, value in _kernels(stored):
        if any(isinstance(one, str) and "/" in one for one in (value.values() if isinstance(value, dict) else [value])):
            raise InputError(f"{path}: {key!r} names code to be fetched and run ({shown(value)}): remove that key")


def _kernels(stored: Any) -> Iterator[tuple[str, Any]]:
    waiting = [stored]
    while waiting:  # without recursion: files may be nested deeply
        one = waiting.pop()
        parts = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, value in parts:
            if isinstance(key, str) and key.strip("_").removesuffix("_internal") in KERNELS:
                yield key, value
            waiting.append(value)
