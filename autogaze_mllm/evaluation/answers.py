"""Answers on disk: one json line each, written so that a killed run loses at most the one in flight.

A folder may hold several files, one per process that wrote at the same time. A line counts when it is complete: what a
kill has torn off is cut away when its file is next written to, and overlooked until then.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from ..common.errors import InputError
from ..common.storage.files import read_bytes, why_not, writing
from ..common.storage.json_text import Fields, parse_object, to_json
from ..common.storage.locks import run_lock

logger = logging.getLogger(__name__)

PATTERN = "answers-*.jsonl"
_warned: set[Path] = set()  # folders; a run reads its own many times


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
    """Appends answers to one file, which is this process's alone; each is on the disk when `append` returns."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / f"answers-{rank:05}.jsonl"
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

    def append(self, answer: Answer) -> None:
        line = (to_json(dataclasses.asdict(answer)) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:  # a full disk
            raise InputError(f"{self.path}: cannot be written ({why_not(error)}); go on with --resume") from error

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_answers(folder: Path) -> dict[str, Answer]:
    """All answers of a run by question id. An answer replaces a failure. Where two processes have written the same run,
    the first answer to a question counts, with a warning."""
    found: dict[str, Answer] = {}
    again = 0
    for path in sorted(folder.glob(PATTERN)):
        lines = read_bytes(path).split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line break is torn
            answer = _parse(line, path, number)
            before = found.get(answer.id)
            if before is not None and before.error is None:
                again += answer.error is None
                continue
            found[answer.id] = answer
    if again and folder not in _warned:
        _warned.add(folder)
        logger.warning(
            "%s: %d answers are to questions that were answered before; two processes wrote here. The first ones count",
            folder,
            again,
        )
    return found


def _parse(line: bytes, path: Path, number: int) -> Answer:
    where = f"{path}, line {number}"
    stored = Fields(parse_object(line, where), where)
    for name in ("id", "video"):
        stored.get(name, str)
    return Answer(**stored.known(Answer))
