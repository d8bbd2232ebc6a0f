"""MLVU, multiple choice: tasks on videos of minutes to hours. The score is the mean over the task types (m-avg)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.tables import Row, read_rows
from ..extraction import before_bracket
from .base import Benchmark, Published, Question

INSTRUCTION = "Only give the best option.\nBest option: ("
REPOSITORIES = {"dev": "sy1998/MLVU_dev", "test": "sy1998/MLVU_Test"}
_OPTION = re.compile(r"^\(?([A-F])[).]", re.MULTILINE)


class MLVU(Benchmark):
    name = "mlvu"
    title = "MLVU"
    repo = REPOSITORIES["dev"]
    splits = ("dev", "test")
    sizes = (2174, 502)
    mean_over = "task_type"

    @property
    def repository(self) -> str:
        return REPOSITORIES[self.split]

    @property
    def tables(self) -> tuple[str, ...]:
        return ("data/test*.parquet", "test*.parquet", "*.parquet", "*/*.parquet")

    @property
    def published(self) -> Published | None:
        return Published(70.1, 71.6, "m-avg") if self.split == "dev" else None

    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        asked: Counter[str] = Counter()
        for path in paths:
            for row in read_rows(path, ("video_name", "question", "answer", "task_type")):
                video, text = row.text("video_name"), row.text("question")
                letters = "".join(dict.fromkeys(_OPTION.findall(text)))
                if not letters:
                    raise row.error("the question names no options (A), (B), ...")
                asked[video] += 1  # questions have no ids of their own
                yield (
                    row,
                    Question(
                        f"{video}/{asked[video]}",
                        video,
                        f"{text}\n{INSTRUCTION}",
                        letters,
                        row.letter("answer", letters),
                        categories={"task_type": row.text("task_type")},
                    ),
                )

    def official(self, reply: str, question: Question) -> str | None:
        return before_bracket(reply, question.letters)
