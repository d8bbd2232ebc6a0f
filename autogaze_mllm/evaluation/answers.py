"""Answers on disk: one json line each, written so that a killed run loses at most the one in flight.

A folder may hold several files, one per process that wrote at the same time.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

from ..common.storage.json_lines import JsonLines, read_lines
from ..common.storage.json_text import Fields

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


class AnswerLog(JsonLines):
    """Appends answers to one file, which is this process's alone."""

    def __init__(self, folder: Path, rank: int = 0, world: int = 1) -> None:
        """rank: of this process, one of `world`."""
        super().__init__(folder / f"answers-{rank:05}.jsonl", f"-{rank:05}", "go on with --resume", world)

    def add(self, answer: Answer) -> None:
        self.append(dataclasses.asdict(answer))


def read_answers(folder: Path) -> dict[str, Answer]:
    """All answers of a run by question id. An answer replaces a failure. Where two processes have written the same run,
    the first answer to a question counts, with a warning."""
    found: dict[str, Answer] = {}
    again = 0
    for path in sorted(folder.glob(PATTERN)):
        for line in read_lines(path):
            answer = _parse(line)
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


def _parse(stored: Fields) -> Answer:
    for name in ("id", "video"):
        stored.get(name, str)
    return Answer(**stored.known(Answer))
