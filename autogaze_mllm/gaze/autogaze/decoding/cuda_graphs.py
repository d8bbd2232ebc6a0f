"""Recording what a step starts on the device, and replaying it, but only where that has been seen to do the same."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from ....common.errors import first_line

logger = logging.getLogger(__name__)

# How steps are started. off: operation by operation; graphs: CUDA graphs; compile: torch.compile, as CUDA graphs where
# there is CUDA. None means graphs on CUDA and off elsewhere. Where ids are sampled it is always off.
Capture = Literal["off", "graphs", "compile"]

_ONE_RECORDING = threading.Lock()  # CUDA lets a process record one thing at a time


def default_capture(device: torch.device) -> Capture:
    return "graphs" if device.type == "cuda" else "off"


class Recorder:
    """Records what a function starts on the device when it is asked for it the second time, and replays it from then
    on. The first time prepares libraries and compiles.

    A replay counts only if it leaves in `buffers`, which are all that functions change, what the function itself then
    leaves there from the same start. Where it does not, or where recording fails (no memory for it included), a warning
    names the cause and nothing is replayed any more: `works` is False.
    """

    def __init__(self, device: torch.device, buffers: Iterable[torch.Tensor]) -> None:
        self.device, self.buffers = device, list(buffers)
        self.replays: dict[tuple[object, ...], Callable[[], None]] = {}
        self.seen: set[tuple[object, ...]] = set()
        self.works = True
        self.pool: Any = None  # scratch memory, shared since nothing in it outlives a replay
        self.stream: Any = None  # of this device; torch's own for recordings is of the first device that recorded

    def __call__(self, key: tuple[object, ...], function: Callable[[], None]) -> None:
        if key in self.replays:
            self.replays[key]()
        elif self.works and key in self.seen:
            self._try(key, function)
        else:
            self.seen.add(key)
            function()

    def _try(self, key: tuple[object, ...], function: Callable[[], None]) -> None:
        fault, start, found = "", [], []
        try:
            start = [buffer.clone() for buffer in self.buffers]
            replay = self.record(function)
            replay()
            found = [buffer.clone() for buffer in self.buffers]
        except RuntimeError as error:
            fault = first_line(error)
        for buffer, value in zip(self.buffers, start, strict=False):  # there is no start where memory ended
            buffer.copy_(value)
        function()  # last, so that what it leaves stays
        try:
            if not fault and not all(map(_same, found, self.buffers)):
                fault = f"a replayed {key[0]} does not do what it does otherwise"
        except RuntimeError as error:
            fault = first_line(error)
        if fault:
            self.works, self.pool = False, None
            self.replays.clear()
            logger.warning("CUDA graphs do not work here, going on without: %s", fault)
        else:
            self.replays[key] = replay

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Runs nothing. What other threads do on the device meanwhile is not recorded."""
        with _ONE_RECORDING, torch.cuda.device(self.device):
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            self.stream = self.stream or torch.cuda.Stream()
            graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                self._record(graph, self.pool, function)
            except RuntimeError:
                # torch's random numbers go on believing that something is recorded until a recording ends well.
                with contextlib.suppress(RuntimeError):
                    self._record(torch.cuda.CUDAGraph(), None, lambda: torch.zeros(1, device=self.device))
                raise
            finally:
                torch.cuda.set_stream(current)  # a recording that failed leaves its own as the current one
        return graph.replay

    def _record(self, graph: torch.cuda.CUDAGraph, pool: Any, function: Callable[[], object]) -> None:
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            function()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whole numbers alike, others but for rounding."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    near = torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one, other, rtol=near, atol=near, equal_nan=True)
