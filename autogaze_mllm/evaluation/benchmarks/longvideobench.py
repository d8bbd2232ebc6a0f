"""LongVideoBench, validation: videos of up to an hour, up to five options. Asked without subtitles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.tables import Row, read_rows
from ..extraction import first_capital
from .base import Benchmark, Published, Question, lettered

INSTRUCTION = "Answer with the option's letter from the given choices directly."
OPTIONS = ("option0", "option1", "option2", "option3", "option4")
PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


class LongVideoBench(Benchmark):
    name = "longvideobench"
    title = "LongVideoBench (validation)"
    repo = "longvideobench/LongVideoBench"
    max_new_tokens = 32
    splits = ("validation",)
    sizes = (1337,)

    @property
    def tables(self) -> tuple[str, ...]:
        return ("validation*.parquet", "*/validation*.parquet", "lvb_val.json")

    @property
    def published(self) -> Published:
        return Published(57.7, 61.0)

    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        for path in paths:
            # The json file has a list of options; the parquet file a column for each, "N/A" where there are fewer.
            listed = path.suffix == ".json"
            columns = ("id", "video_path", "question", "correct_choice", "duration_group", "question_category")
            for row in read_rows(path, (*columns, *(("candidates",) if listed else OPTIONS))):
                options = row.texts("candidates") if listed else _options(row)
                letters = row.letters(options)
                yield (
                    row,
                    Question(
                        row.text("id"),
                        row.text("video_path"),
                        f"{row.text('question')}\n{lettered(options)}\n{INSTRUCTION}",
                        letters,
                        row.position("correct_choice", letters),
                        options,
                        {name: row.text(name) for name in ("duration_group", "question_category")},
                    ),
                )

    def official(self, reply: str, question: Question) -> str | None:
        return first_capital(reply, "ABCDE", PHRASES)


def _options(row: Row) -> tuple[str, ...]:
    texts = [row.text(column) for column in OPTIONS]
    options = tuple(texts[: texts.index("N/A")] if "N/A" in texts else texts)
    if not options:
        raise row.error("has no options")
    return options
