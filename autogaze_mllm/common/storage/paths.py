"""Names of files: whether there is one that can be read, and how a name is shown."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError

_ADDRESS = re.compile(r"(?i)([a-z][a-z0-9+.-]+:/+(?=[^/])|data:)")
_SHOWN = 300  # characters of a name that an error repeats


def check_path(path: str | Path, kind: str) -> None:
    """Raises InputError where there is no regular file of this name. kind: "video" or "picture", for the message."""
    name = os.fspath(path)
    try:
        facts = os.stat(name)
    except (OSError, ValueError) as error:  # ValueError: a null character
        if _ADDRESS.match(name) and not isinstance(error, PermissionError):
            problem = f"is an address, not a file: download the {kind} first and give the file's path"
            raise InputError(f"{shown_name(name)}: {problem}") from error
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)) or len(name) > 255
        reason = "no such file" if absent or not isinstance(error, OSError) else error.strerror
        raise InputError(f"{shown_name(name)}: {reason}") from error
    if stat.S_ISDIR(facts.st_mode):
        raise InputError(f"{shown_name(name)}: is a folder, expected a {kind} file")
    if not stat.S_ISREG(facts.st_mode):
        problem = f"is a pipe or a device, expected a file; write the {kind} to a file first"
        raise InputError(f"{shown_name(name)}: {problem}")


def is_file(path: str | Path) -> bool:
    """As of `Path`. Raises InputError where that cannot be told: its folder may not be searched, the name is too
    long."""
    return _told(path, Path.is_file)


def is_folder(path: str | Path) -> bool:
    """The same of a folder."""
    return _told(path, Path.is_dir)


def _told(path: str | Path, ask: Callable[[Path], bool]) -> bool:
    try:
        return ask(Path(path))
    except OSError as error:
        raise InputError(f"{shown_name(os.fspath(path))}: {error.strerror or error}") from error


def shown_name(name: str) -> str:
    """A file's name in one line of an error: what cannot be printed is escaped, what is endless is cut."""
    printable = name if name.isprintable() else repr(name)[1:-1]
    return printable if len(printable) <= _SHOWN else f"{printable[:_SHOWN]}..."
