"""NExT-QA, multiple choice: causal, temporal and descriptive questions with five options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.tables import Row, read_rows
from ..extraction import last_mention
from .base import Benchmark, Published, Question, lettered

LETTERS = "ABCDE"
OPTIONS = ("a0", "a1", "a2", "a3", "a4")
KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


class NExTQA(Benchmark):
    name = "nextqa"
    title = "NExT-QA (multiple choice)"
    repo = "lmms-eval/NExTQA"
    splits = ("test",)
    sizes = (8564,)
    video_folders = ("NExTVideo", "videos", "")

    @property
    def tables(self) -> tuple[str, ...]:
        return ("MC/test*.parquet", "test*.parquet", "*.parquet")

    @property
    def published(self) -> Published:
        return Published(82.2, 82.8)

    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        for path in paths:
            for row in read_rows(path, ("video", "question", "answer", "qid", "type", *OPTIONS)):
                options = tuple(row.text(column).strip() for column in OPTIONS)
                kind = row.text("type")
                if kind[0] not in KINDS:
                    raise row.error(f"type {kind!r} begins with none of {', '.join(KINDS)}")
                yield (
                    row,
                    Question(
                        f"{row.text('video')}/{row.text('qid')}",
                        row.text("video"),
                        f"{row.text('question').strip()}\n{lettered(options)}",
                        LETTERS,
                        row.position("answer", LETTERS),
                        options,
                        {"kind": KINDS[kind[0]], "type": kind},
                    ),
                )

    def official(self, reply: str, question: Question) -> str | None:
        return last_mention(reply, LETTERS, question.options)
