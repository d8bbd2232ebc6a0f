"""Questions about one encoded video share what the LLM made of it: only the first one reads the visual tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

# What a caller may ask of generate() that needs keys and values of its own, and where nothing is asked.
OWN_CACHE: dict[str, tuple[Any, ...]] = {
    "past_key_values": (),
    "cache_implementation": ("dynamic",),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "use_cache": (True,),
    "assistant_model": (),
    "prompt_lookup_num_tokens": (),
    "custom_generate": (),
}


def may_share(options: Mapping[str, Any], generation_config: Any) -> bool:
    """Whether a call of generate() with these options can go on from keys and values that are there. They may stand in
    a generation config as well, given or the model's own."""
    config = options.get("generation_config") or generation_config
    for name, neutral in OWN_CACHE.items():
        value = options[name] if name in options else getattr(config, name, None)
        if value is not None and value not in neutral:
            return False
    return True


class PromptPrefix:
    """Keys and values of the last prompt. They hold as long as no weight of the model changes.

    One call at a time goes on from them; those of other threads wait for it. A copy begins anew.
    """

    def __init__(self) -> None:
        self._ids = torch.empty(0, dtype=torch.long)
        self._cache: DynamicCache | None = None
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __reduce__(self) -> tuple[type[PromptPrefix], tuple[()]]:
        return PromptPrefix, ()

    @contextmanager
    def shared(self, ids: torch.Tensor, text_config: Any) -> Iterator[DynamicCache | None]:
        """Inside, nobody else has them. As `_begun`; None too for a call inside a call of the same thread (a streamer
        that asks), which reads its prompt by itself."""
        if self._owner == threading.get_ident():
            yield None
            return
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield self._begun(ids, text_config)
            finally:
                self._owner = None

    def _begun(self, ids: torch.Tensor, text_config: Any) -> DynamicCache | None:
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
