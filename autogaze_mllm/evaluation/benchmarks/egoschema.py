"""EgoSchema: one question each on three-minute egocentric videos.

The answers of the full set are withheld: it is answered into a file to submit. Those of the subset are public.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.tables import Row, read_rows
from ..extraction import whole_option
from .base import Benchmark, Published, Question

INSTRUCTION = "Answer with the option's letter from the given choices directly."
FOLDERS = {"subset": "Subset", "full": "GENERATION"}


class EgoSchema(Benchmark):
    name = "egoschema"
    title = "EgoSchema"
    repo = "lmms-eval/egoschema"
    splits = ("subset", "full")
    sizes = (500, 5031)

    @property
    def tables(self) -> tuple[str, ...]:
        return (f"{FOLDERS[self.split]}/test*.parquet",)

    @property
    def published(self) -> Published:
        return Published(None, 66.9, "on the full test set")

    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        scored = self.split == "subset"
        columns = ("video_idx", "question", "option", *(("answer",) if scored else ()))
        for path in paths:
            for row in read_rows(path, columns):
                options = row.texts("option")
                letters = row.letters(options, numbered=True)
                yield (
                    row,
                    Question(
                        row.text("video_idx"),
                        row.text("video_idx"),
                        "\n".join((row.text("question"), *options, INSTRUCTION)),
                        letters,
                        row.position("answer", letters) if scored else None,
                        options,
                    ),
                )

    def official(self, reply: str, question: Question) -> str | None:
        return whole_option(reply, question.letters, question.options)
