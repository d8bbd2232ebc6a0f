"""Which base models are wrapped now. Nothing is written on the base itself."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .model import GazedModel

_wrapped: weakref.WeakKeyDictionary[nn.Module, weakref.ref[GazedModel]] = weakref.WeakKeyDictionary()


def forget(base: nn.Module) -> None:
    """The base is free to be wrapped again."""
    _wrapped.pop(base, None)
