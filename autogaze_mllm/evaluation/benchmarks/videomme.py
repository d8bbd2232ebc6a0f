"""Video-MME: 900 videos of all lengths, three questions each, with or without their subtitles.

The prompt is the one of the benchmark's authors. With subtitles, the cues shown at the sampled frames come first; where
there are none, the question is asked as without subtitles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...common.errors import InputError
from ..data.subtitles import Cue, read_subtitles, shown_at
from ..data.tables import Row, read_rows
from ..extraction import first_capital
from .base import Benchmark, Published, Question

LETTERS = "ABCD"
PROMPT = (
    "Select the best answer to the following multiple-choice question based on the {source}. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n{question}\nThe best answer is:"
)
SUBTITLES = "This video's subtitles are listed below:\n{subtitles}\n"
CATEGORIES = ("duration", "domain", "sub_category", "task_type")
# Two pairs are one phrase each in the authors' script, where a comma is missing.
PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)


class VideoMME(Benchmark):
    name = "videomme"
    title = "Video-MME"
    repo = "lmms-lab/Video-MME"
    splits = ("test",)
    sizes = (2700,)
    has_subtitles = True
    video_folders = ("data", "videos", "")

    @property
    def tables(self) -> tuple[str, ...]:
        return ("videomme/test*.parquet", "test*.parquet", "*/test*.parquet", "*.parquet")

    @property
    def published(self) -> Published:
        return Published(70.0, 71.8, "with subtitles") if self.subtitles else Published(64.2, 67.0, "without subtitles")

    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        columns = ("videoID", "question_id", "question", "options", "answer", *CATEGORIES)
        subtitles = functools.cache(self._cues)
        if self.subtitles and not (self.folder / "subtitle").is_dir():
            raise InputError(f"{self.folder}: no folder 'subtitle' here, which holds <videoID>.srt")
        for path in paths:
            for row in read_rows(path, columns):
                video, options = row.text("videoID"), row.texts("options")
                letters = row.letters(options, numbered=True)
                yield (
                    row,
                    Question(
                        row.text("question_id"),
                        video,
                        row.text("question") + "\n" + "\n".join(options),
                        letters,
                        row.letter("answer", letters),
                        options,
                        {name: row.text(name) for name in CATEGORIES},
                        subtitles(video) if self.subtitles else (),
                    ),
                )

    def _cues(self, video: str) -> tuple[Cue, ...]:
        """Not every video has subtitles."""
        path = self.folder / "subtitle" / f"{video}.srt"
        return read_subtitles(path) if path.is_file() else ()

    def prompt(self, question: Question, seconds: Sequence[float]) -> str:
        shown = shown_at(question.cues, seconds)
        if not shown:
            return PROMPT.format(source="video", question=question.text)
        asked = PROMPT.format(source="video and the subtitles", question=question.text)
        return SUBTITLES.format(subtitles="\n".join(shown)) + asked

    def official(self, reply: str, question: Question) -> str | None:
        return first_capital(reply, LETTERS, PHRASES)
