"""What no program can help, wherever a library meets it."""

from __future__ import annotations

from .storage.files import is_full, why_not


def of_the_machine(error: BaseException) -> str | None:
    """One line for a full disk or too little memory, None for anything else."""
    if is_full(error):
        named = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{named}nothing more can be written ({why_not(error)})"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return "too little memory for this; take fewer frames or tiles, smaller batches, or another device"
    return None
