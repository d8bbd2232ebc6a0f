"""Configurations of models that others made: what must not be done because a file says so.

Code that lies beside a model (`auto_map`) is never run: transformers gets trust_remote_code=False everywhere. But it
also takes attention and expert kernels from a repository of the hub where a configuration names one, and these are
programs, too. And it makes as many layers, and buffers as large, as a configuration says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from .errors import InputError
from .storage.json_text import Fields, shown

KERNELS = ("attn_implementation", "experts_implementation")
MOST_LAYERS, LARGEST, LARGEST_SIDE = 10_000, 1 << 24, 1 << 14


def check_no_code(stored: Any, path: str | Path) -> None:
    """Raises InputError where a configuration, at any depth, names a repository to take code from."""
    for key, value in _entries(stored):
        if key.strip("_").removesuffix("_internal") not in KERNELS:
            continue
        if any(isinstance(one, str) and "/" in one for one in (value.values() if isinstance(value, dict) else [value])):
            raise InputError(f"{path}: {key!r} names code to be fetched and run ({shown(value)}): remove that key")


def check_sizes(stored: Any, path: str | Path) -> None:
    """Raises InputError for sizes and numbers of layers, at any depth, that no model has."""
    for key, value in _entries(stored):
        most = MOST_LAYERS if key.endswith(("layers", "depth", "heads")) else LARGEST
        if key == "image_size":
            most = LARGEST_SIDE
        counts = key.endswith(("size", "dim", "depth", "embeddings", "tokens")) or key.startswith(("num_", "n_"))
        parts = value if isinstance(value, list) else [value]
        if counts and any(isinstance(part, (int, float)) and not part <= most for part in parts):
            raise InputError(f"{path}: {key!r} is {shown(value)}, more than any model has ({most})")


def check_generation(stored: Mapping[str, Any], path: str | Path) -> None:
    """Raises InputError for values of a generation_config.json that are of another type than they have there."""
    fields = Fields(stored, path)
    for key, value in stored.items():
        whole = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
        if any(abs(one) >= 1 << 31 for one in whole):
            raise InputError(f"{path}: {key!r} is a number beyond what a token or a length can be")
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        fields.get(key, int | list[int] | None, None)
    for key in ("temperature", "top_p", "repetition_penalty", "length_penalty"):
        fields.get(key, float | None, None)
    for key in ("max_length", "max_new_tokens", "min_length", "top_k", "num_beams", "no_repeat_ngram_size"):
        fields.get(key, int | None, None)
    for key in ("do_sample", "use_cache", "output_hidden_states", "output_attentions", "output_scores"):
        fields.get(key, bool | None, None)
    fields.get("return_dict_in_generate", Literal[False] | None, None)  # an answer is ids


def _entries(stored: Any) -> Iterator[tuple[str, Any]]:
    waiting = [stored]
    while waiting:  # without recursion: files may be nested deeply
        one = waiting.pop()
        parts = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, value in parts:
            if isinstance(key, str):
                yield key, value
            waiting.append(value)
