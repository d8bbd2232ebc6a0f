"""Files of json lines that are written to the end of, and that a kill harms by one line at most.

A line counts when it is complete: what a kill has torn off is cut away when the file is next written to, and overlooked
until then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import InputError
from .files import read_bytes, why_not, writing
from .json_text import Fields, parse_object, to_json
from .locks import run_lock


class JsonLines:
    """Appends lines to one file, which is this process's alone; each is on the disk when `append` returns. A context
    manager. part, world: of the folder's lock, which it takes."""

    def __init__(self, path: Path, part: str, go_on: str, world: int = 1) -> None:
        """go_on: how to go on after a full disk, for the error."""
        self.path, self._go_on = path, go_on
        with ExitStack() as stack:
            stack.enter_context(run_lock(path.parent, part, world))
            with writing(path):
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                stack.callback(os.close, self._file)
                self._cut_torn_line()
                _sync_folder(path.parent)
            self._open = stack.pop_all()

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.ftruncate(self._file, complete)

    def append(self, values: dict[str, Any]) -> None:
        line = (to_json(values) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:  # a full disk
            raise InputError(f"{self.path}: cannot be written ({why_not(error)}); {self._go_on}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()


def read_lines(path: Path) -> Iterator[Fields]:
    """The complete lines of a file. Raises InputError, naming file and line, for one that is no json object."""
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):  # what follows the last line break is torn
        where = f"{path}, line {number}"
        yield Fields(parse_object(line, where), where)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
