"""Host memory: what a long run frees goes back to the system."""

from __future__ import annotations

import ctypes
from functools import cache


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
