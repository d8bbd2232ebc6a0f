"""Errors that people are to read: one line that says what happened, and no traceback on the command line."""

import os
import time
from collections.abc import Sequence

LONGEST = 300  # characters of another library's line
FIRST_SPEAKS = 5.0  # seconds


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, where, and what to do about it. Exit code 2."""


class DivergenceError(ArithmeticError):
    """A training has come to numbers that it cannot go on from, though its input may be in order. One line, as above.
    Exit code 3."""


def listed(items: Sequence[object], limit: int, separator: str = ", ") -> str:
    """The first `limit` items in one line, and how many more there are."""
    shown = separator.join(map(str, items[:limit]))
    if len(items) <= limit:
        return shown
    return f"{shown}{separator.rstrip().removesuffix(',')} and {len(items) - limit} more"


def first_line(error: BaseException) -> str:
    """What an error says, in one line that somebody still reads; its type where it says nothing."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def let_first_speak() -> None:
    """Before an error is told: under torchrun the processes of a machine come to the same error together, and those
    that wait here are ended as soon as the first one has told it. One that is alone with its error tells it later."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(FIRST_SPEAKS)
