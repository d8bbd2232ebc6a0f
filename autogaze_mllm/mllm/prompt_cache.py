"""Questions about one encoded video share what the LLM made of it: only the first one reads the visual tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

# What a caller may ask of generate() that needs keys and values of its own.
OWN_CACHE = ("past_key_values", "cache_implementation", "num_beams", "num_return_sequences", "use_cache")


class PromptPrefix:
    """Keys and values of the last prompt. They hold as long as no weight of the model changes."""

    def __init__(self) -> None:
        self._ids = torch.empty(0, dtype=torch.long)
        self._cache: DynamicCache | None = None

    def shared(self, ids: torch.Tensor, text_config: Any) -> DynamicCache | None:
        """Keys and values of the start that this prompt has in common with the last one; generate() adds the rest.

        ids: (1, L), with the same medium behind the same placeholders. None for an LLM whose layers forget (sliding
        windows, recurrent states): they cannot go back to an earlier token.
        """
        row = ids[0].cpu()
        cache = self._cache
        if cache is None or _broken_off(cache):
            cache = DynamicCache(config=text_config)
            if any(type(layer) is not DynamicLayer for layer in cache.layers):
                return None
            self._cache, self._ids = cache, row[:0]
        length = min(len(row), len(self._ids))
        differs = (row[:length] != self._ids[:length]).nonzero()
        alike = int(differs[0]) if len(differs) else length
        known = min(alike, len(row) - 1)  # one token at least is read, to tell what follows it
        if cache.get_seq_length() > known:
            cache.crop(known - cache.get_seq_length())
        self._ids = row
        return cache


def _broken_off(cache: DynamicCache) -> bool:
    """Whether the last call ended in the middle of the layers."""
    return len({layer.get_seq_length() for layer in cache.layers if isinstance(layer, DynamicLayer)}) > 1
