"""What no program can help, wherever a library meets it."""

from __future__ import annotations

import errno
import os

from .storage.files import is_full, why_not
from .storage.paths import shown_name

# Of names that a user has given and of what lies there; but not that nothing does, which we should have seen.
NOT_USABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
)


def of_the_machine(error: BaseException) -> str | None:
    """One line for a full disk, too little memory, or a file that may not be used; None for anything else."""
    if is_full(error):
        named = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{named}nothing more can be written ({why_not(error)})"
    if isinstance(error, OSError) and error.errno in NOT_USABLE and error.filename:
        return f"{shown_name(os.fsdecode(error.filename))}: {error.strerror}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return "too little memory for this; take fewer frames or tiles, smaller batches, or another device"
    return None
