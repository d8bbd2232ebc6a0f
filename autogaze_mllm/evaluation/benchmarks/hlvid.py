"""HLVid: questions on long 4K videos. The question holds options and instruction already."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.tables import Row, read_rows
from ..extraction import first_word
from .base import Benchmark, Published, Question

LETTERS = "ABCD"
_OPTION = re.compile(rf"^\(?([{LETTERS}])[.):]\s*(.+)$", re.MULTILINE)


class HLVid(Benchmark):
    name = "hlvid"
    title = "HLVid"
    repo = "bfshi/HLVid"
    splits = ("test",)
    sizes = (268,)

    @property
    def tables(self) -> tuple[str, ...]:
        return ("data/test*.parquet", "test*.parquet", "*.parquet", "*/*.parquet")

    @property
    def published(self) -> Published:
        return Published(42.5, 52.6, "sources disagree on the number of questions: 268, 300 or 600")

    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        for path in paths:
            for row in read_rows(path, ("question_id", "category", "video_path", "question", "answer")):
                yield (
                    row,
                    Question(
                        row.text("question_id"),
                        row.text("video_path"),
                        f"Question: {row.text('question')}",
                        LETTERS,
                        row.letter("answer", LETTERS),
                        options_within(row.text("question")),
                        categories={"category": row.text("category")},
                    ),
                )

    def official(self, reply: str, question: Question) -> str | None:
        return first_word(reply, LETTERS)


def options_within(text: str) -> tuple[str, ...]:
    """Texts of the options that stand in a question, each in a line; none where they are not just A to D in order."""
    found = _OPTION.findall(text)
    return tuple(option.strip() for _, option in found) if [letter for letter, _ in found] == list(LETTERS) else ()
