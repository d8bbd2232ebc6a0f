"""Seconds of work, stage by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Stopwatch:
    """Seconds of work per stage, over all threads; an accelerator's queue is emptied first, so that work is counted
    where it was asked for."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            with self.lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
