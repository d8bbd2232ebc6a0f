"""Memory: what a long run frees goes back to the system, and how much a run needed at most."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim  # glibc's; other allocators have none
    except (AttributeError, OSError, TypeError):
        return None


def release_free_memory() -> None:
    """Hands the heap's free pages back to the system.

    Chunks come and go in blocks of up to 30 MB, which glibc keeps in the heaps of several threads; holes left between
    longer-lived blocks add up to hundreds of megabytes over a thousand frames. Takes about 10 ms a call.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class PeakMemory:
    """The most memory in use since this was made, in bytes: of the device, or of the process (Linux; 0 elsewhere)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            with suppress(OSError):  # elsewhere, and where it is not allowed, what came before counts as well
                Path("/proc/self/clear_refs").write_text("5")
            self.before = _resident("VmRSS")

    @property
    def total(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM")

    @property
    def above(self) -> int:
        """Over what was in use when this was made."""
        return self.total - self.before


def _resident(which: str) -> int:
    """Bytes of the process: now (VmRSS), or the most of them (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024
