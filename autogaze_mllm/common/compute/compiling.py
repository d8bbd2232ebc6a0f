"""torch.compile with a way back: where nothing can be compiled, the same function runs as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)


@cache
def _warn(reason: str) -> None:
    """Once for each reason."""
    logger.warning("torch.compile does not work here, going on without: %s", reason)


def may_vary(tensor: torch.Tensor, dimension: int) -> None:
    """Says before a compiled call that the size along this dimension differs from call to call, so that nothing is
    compiled anew for another one. torch names no public function for it."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)


class Compiled:
    """A function that is compiled at its first call; where that fails it says why and runs uncompiled."""

    def __init__(self, function: Callable[..., Any], backend: str | Callable[..., Any] = "inductor") -> None:
        self.plain = function
        self.fast: Callable[..., Any] | None = torch.compile(function, fullgraph=True, backend=backend)

    def __call__(self, *args: Any) -> Any:
        if self.fast is not None:
            from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes a second to import

            try:
                return self.fast(*args)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                self.fast = None
                reason = " ".join(str(error).split("\n")[:2])  # the second line is the compiler's own
                _warn(reason)
        return self.plain(*args)
