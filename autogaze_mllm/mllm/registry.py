"""Which base models are wrapped now. Nothing is written on the base itself."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .model import GazedModel

_wrapped: weakref.WeakKeyDictionary[nn.Module, weakref.ref[GazedModel]] = weakref.WeakKeyDictionary()


def wrapper_of(base: nn.Module) -> GazedModel | None:
    """What the base is wrapped in, if anything."""
    found = _wrapped.get(base)
    return None if found is None else found()


def remember(base: nn.Module, wrapper: GazedModel) -> None:
    """The base cannot be wrapped again for as long as the wrapper lives."""
    _wrapped[base] = weakref.ref(wrapper)


def forget(base: nn.Module) -> None:
    """The base is free to be wrapped again."""
    _wrapped.pop(base, None)
