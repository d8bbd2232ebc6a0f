"""Answers on disk: one json line each, written so that a killed run loses at most the one in flight.

A folder may hold several files, one per process that wrote at the same time. A line counts when it is complete: what a
kill has torn off is cut away when its file is next written to, and overlooked until then.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common.errors import InputError

PATTERN = "answers-*.jsonl"


@dataclass(frozen=True)
class Answer:
    """id, video, right answer and categories of the question, the model's raw reply, and what the rules read in it.

    error: why the video could not be shown; such an answer is wrong. tokens: visual, prompt, new, dense (what the base
    model would spend on the frames). patches: kept, total. frames: sampled, lost, and their rate (fps). seconds: by
    stage; those of the video stand with the first question asked about it.
    """

    id: str
    video: str
    answer: str | None
    raw: str = ""
    official: str | None = None
    strict: str | None = None
    error: str | None = None
    categories: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    frames: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class AnswerLog:
    """Appends answers to one file; each is on the disk when `append` returns."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / f"answers-{rank:05}.jsonl"
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._cut_torn_line()
            _sync_folder(folder)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.ftruncate(self._file, complete)

    def append(self, answer: Answer) -> None:
        line = (json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:  # a full disk
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then go on with --resume"
            ) from error

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_answers(folder: Path) -> dict[str, Answer]:
    """All answers of a run by question id. An answer replaces a failure; two answers to a question are an error."""
    found: dict[str, Answer] = {}
    for path in sorted(folder.glob(PATTERN)):
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line break is torn
            answer = _parse(line, path, number)
            before = found.get(answer.id)
            if before is not None and before.error is None:
                if answer.error is None:
                    raise InputError(f"{path}, line {number}: question {answer.id!r} was answered already")
                continue
            found[answer.id] = answer
    return found


def _parse(line: bytes, path: Path, number: int) -> Answer:
    try:
        values: dict[str, Any] = json.loads(line)
        return Answer(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}, line {number}: not an answer ({error})") from error
