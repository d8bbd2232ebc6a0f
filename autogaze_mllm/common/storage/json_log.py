"""Results on disk as they come: one json line each, written so that a killed run loses at most the one in flight.

A folder may hold several such files, one per process that wrote at the same time. A line counts when it is complete:
what a kill has torn off is cut away when its file is next written to, and overlooked until then.
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


class JsonLog:
    """Appends to one file, FOLDER/NAME-RANK.jsonl, which is this process's alone. advice: what an error about a full
    disk ends with."""

    def __init__(self, folder: Path, name: str, rank: int = 0, advice: str = "") -> None:
        self.path, self.advice = folder / f"{name}-{rank:05}.jsonl", advice
        with ExitStack() as stack:
            stack.enter_context(run_lock(folder, f"-{rank:05}"))
            with writing(self.path):
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                stack.callback(os.close, self._file)
                self._cut_torn_line()
                _sync_folder(folder)
            self._open = stack.pop_all()

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.ftruncate(self._file, complete)

    def write(self, row: dict[str, Any]) -> None:
        """It is on the disk when this returns."""
        line = (to_json(row) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:  # a full disk
            raise InputError(f"{self.path}: cannot be written ({why_not(error)}){self.advice}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()


def read_logs(folder: Path, name: str) -> Iterator[Fields]:
    """The complete lines of all processes' files. Raises InputError, naming file and line, for what is no object."""
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        lines = read_bytes(path).split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line break is torn
            where = f"{path}, line {number}"
            yield Fields(parse_object(line, where), where)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
