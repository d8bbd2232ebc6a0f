"""torch.compile with a way back: where nothing can be compiled, the same function runs as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

logger = logging.getLogger(__name__)


class Compiled:
    """A function that is compiled at its first call; without a compiler it says so once and runs uncompiled."""

    broken = False  # of all of them: a machine without a compiler has none later on

    def __init__(self, function: Callable[..., Any], backend: str | Callable[..., Any] = "inductor") -> None:
        self.plain = function
        self.fast = torch.compile(function, fullgraph=True, backend=backend)

    def __call__(self, *args: Any) -> Any:
        if not Compiled.broken:
            try:
                return self.fast(*args)
            except TorchDynamoException as error:
                Compiled.broken = True
                reason = " ".join(str(error).split("\n")[:2])  # the second line is the compiler's own
                logger.warning("torch.compile does not work here, going on without: %s", reason)
        return self.plain(*args)
