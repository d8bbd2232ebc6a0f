"""What a benchmark is: where its questions and videos lie, how it asks, and how it reads an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ...common.errors import InputError
from ..data.subtitles import Cue
from ..data.tables import Row, content_of, find_tables
from ..extraction import named_option, strict

TRIED_ENDINGS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    video: name of its video within the benchmark. text: the prompt, or its part that does not depend on the video.
    letters: of the options. options: their texts, where the data give them one by one. answer: letter, None where it is
    withheld. categories: what the accuracy is broken down by. cues: subtitles of the video.
    """

    id: str
    video: str
    text: str
    letters: str
    answer: str | None
    options: tuple[str, ...] = ()
    categories: dict[str, str] = field(default_factory=dict)
    cues: tuple[Cue, ...] = ()


@dataclass(frozen=True)
class Published:
    """Accuracies in per cent, of NVILA-8B-Video and of NVILA-8B-HD-Video with AutoGaze. note: what they stand for."""

    dense: float | None
    gazed: float
    note: str = ""


@dataclass(frozen=True)
class Benchmark(ABC):
    """A benchmark in a local folder.

    split: one of `splits`. subtitles: ask with subtitles, where the benchmark has them.
    Raises InputError for a split or subtitles that it does not have.
    """

    folder: Path
    split: str = ""
    subtitles: bool = False

    name: ClassVar[str]
    title: ClassVar[str]
    repo: ClassVar[str]  # data set on the hub
    revision: ClassVar[str] = "main"  # a run records the commit that this was
    prompt_version: ClassVar[str] = "1"  # raise it when a prompt changes
    max_new_tokens: ClassVar[int] = 16
    splits: ClassVar[tuple[str, ...]]  # the first one is the default
    sizes: ClassVar[tuple[int, ...]]  # published number of questions of each split
    has_subtitles: ClassVar[bool] = False
    mean_over: ClassVar[str | None] = None  # the score is the mean of the accuracies of this category's values
    video_folders: ClassVar[tuple[str, ...]] = ("videos", "")

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        split = self.split or self.splits[0]
        if split not in self.splits:
            raise InputError(f"{self.name} has no split {split!r}; it has: {', '.join(self.splits)}")
        object.__setattr__(self, "split", split)
        if self.subtitles and not self.has_subtitles:
            raise InputError(f"{self.name} is not asked with subtitles")

    # -- what each benchmark says --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def tables(self) -> tuple[str, ...]:
        """Patterns of the data files, the most specific first."""

    @abstractmethod
    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        """The questions of the data files."""

    @abstractmethod
    def official(self, reply: str, question: Question) -> str | None:
        """The answer by the benchmark's own rule, even where it is wrong; None where it finds none."""

    @property
    def published(self) -> Published | None:
        """None for a split that nothing was published for."""
        return None

    # -- what all share ------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Questions that this split was published with."""
        return self.sizes[self.splits.index(self.split)]

    @property
    def repository(self) -> str:
        """The data set on the hub that holds this split."""
        return self.repo

    def strict(self, reply: str, question: Question) -> str | None:
        """The answer by our own rule: the letter that the reply commits to, or else that of the option that it is."""
        return strict(reply, question.letters) or named_option(reply, question.letters, question.options)

    def prompt(self, question: Question, seconds: Sequence[float]) -> str:
        """What the model is asked about a video of which it sees frames at these times."""
        return question.text

    def questions(self) -> list[Question]:
        """All questions, in the order of the data. Raises InputError for bad data, naming file and row."""
        first_rows: dict[str, Row] = {}
        found = []
        for row, question in self.rows(self.table_paths()):
            first = first_rows.setdefault(question.id, row)
            if first is not row:
                raise row.error(f"question id {question.id!r} stands in {first.path.name}, row {first.number} already")
            found.append(question)
        return found

    def table_paths(self) -> list[Path]:
        return find_tables(self.folder, self.tables)

    def data_version(self) -> str:
        """Hash of the data files."""
        return content_of(self.table_paths())

    def video_path(self, video: str) -> Path:
        """Where a video lies; if it is missing, where it is expected."""
        names = [video] if Path(video).suffix else [video + ending for ending in TRIED_ENDINGS]
        paths = [self.folder / folder / name for folder in self.video_folders for name in names]
        return next((path for path in paths if path.is_file()), paths[0])


def lettered(options: Sequence[str], form: str = "{letter}. {option}") -> str:
    """One line per option."""
    return "\n".join(form.format(letter=chr(ord("A") + n), option=option) for n, option in enumerate(options))
