"""A SignVid data set on disk, in the layout in which HLVid is published, so that whatever runs HLVid runs it.

FOLDER/data/test-00000-of-00001.parquet (the name that HLVid's loader looks for, also where it holds the train split for
development), FOLDER/videos/*.mp4 and videos/recipe.json, written before the first of them; beside them signvid.json,
written last, which says how it was made and what the videos show. Video number n depends on the recipe and n alone:
what is there is not made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..common.errors import InputError
from ..common.fields import setting, settings
from ..common.storage.files import output_folder, read_json, write_json
from ..common.storage.json_diff import differences
from ..video.writer import write_video
from .plan import SPLITS, Split, VideoPlan, VideoShape, plan_facts, plan_video
from .questions import LEAST_SIGNS, Asked, ask_about, balanced_letters
from .render import render_video

FACTS = "signvid.json"
VIDEO_FACTS = "recipe.json"
TABLE = "data/test-00000-of-00001.parquet"
FORMAT = 2  # raise it when the same recipe begins to give other videos or questions
DEVELOPMENT_SEED = 1000  # of a train split to try things on, apart from those that are trained on
FPS = 4
CODEC = {"preset": "ultrafast", "crf": "23", "g": "16", "threads": "1"}


@settings("SignVid: ")
class SignVidConfig:
    """All that a data set follows from."""

    shape: VideoShape = VideoShape()
    split: Split = setting("train, or test", default="test", flag="", refusal="there is no such split")
    videos: int = setting(default=51, usual=False, manual="videos")
    questions: int = setting("about each video", default=10, usual=False)
    seed: int = setting("of everything that is drawn", default=0, flag="")

    def __post_init__(self) -> None:
        if self.videos < 1 or self.questions < 0:
            raise InputError(f"needs videos and questions, got {self.videos} and {self.questions}")
        if self.questions and self.shape.signs < LEAST_SIGNS:
            raise InputError(f"questions need {LEAST_SIGNS} signs in a video, got {self.shape.signs}")

    def plan(self, number: int) -> VideoPlan:
        return plan_video(self.shape, self.split, self.seed, number)

    def asked(self) -> Iterator[tuple[int, VideoPlan, list[Asked]]]:
        """(number, plan, questions) of every video; right letters are balanced over the whole set."""
        letters = balanced_letters(self.videos * self.questions, self._random(self.videos))
        for number in range(self.videos):
            plan = self.plan(number)
            own = letters[number * self.questions : (number + 1) * self.questions]
            yield number, plan, ask_about(plan, self.questions, own, self._random(number))

    def _random(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), number, 4])

    def facts(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "shape": _shape_facts(self.shape)}

    def video_facts(self) -> dict[str, Any]:
        """All that decides what a video of a given number shows."""
        return {"format": FORMAT, "shape": _shape_facts(self.shape), "split": self.split, "seed": self.seed}


def _shape_facts(shape: VideoShape) -> dict[str, Any]:
    """Without noise where there is none, as it was before there could be any: clean data that are there stay good."""
    facts = dataclasses.asdict(shape)
    return facts if shape.noise else {name: value for name, value in facts.items() if name != "noise"}


def video_name(number: int) -> str:
    return f"{number:05}.mp4"


def write_signvid(folder: str | Path, recipe: SignVidConfig, *, workers: int = 1, progress: bool = False) -> Path:
    """Writes the data set; videos of this recipe that are there already stay. -> the folder. Raises InputError where
    there are others."""
    target = output_folder(folder)
    _claim(target / "videos", recipe)
    rows, truth = [], {}
    for number, plan, questions in recipe.asked():
        truth[video_name(number)] = plan_facts(plan)
        rows += [
            {
                "question_id": f"{recipe.split}-{number:05}-{index:02}",
                "category": asked.kind,
                "video_path": video_name(number),
                "question": asked.text,
                "answer": asked.answer,
            }
            for index, asked in enumerate(questions)
        ]
    write_videos(target / "videos", recipe, workers=workers, progress=progress)
    _write_table(target / TABLE, rows)
    write_json(target / FACTS, {"format": FORMAT, "recipe": recipe.facts(), "signs": truth})
    return target


def write_videos(folder: Path, recipe: SignVidConfig, *, workers: int = 1, progress: bool = False) -> None:
    """FOLDER/00000.mp4 and so on; those that are there stay. Raises InputError where they are of another recipe (their
    number apart)."""
    if workers < 1:
        raise InputError(f"SignVid: needs one worker at least, got {workers}")
    _claim(folder, recipe)
    numbers = [number for number in range(recipe.videos) if not (folder / video_name(number)).exists()]
    with tqdm(total=len(numbers), unit="video", desc="generating", disable=not progress or not numbers) as bar:
        if workers == 1:
            for number in numbers:
                _write_one(folder, recipe, number)
                bar.update()
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for job in [pool.submit(_write_one, folder, recipe, number) for number in numbers]:
                job.result()
                bar.update()


def _claim(folder: Path, recipe: SignVidConfig) -> None:
    """Notes in the folder of the videos what they are made by, before the first of them is written."""
    path = output_folder(folder) / VIDEO_FACTS
    if not path.is_file():
        if next(folder.glob("*.mp4"), None) is not None:
            raise InputError(f"{folder}: holds videos of which nothing says how they were made; choose another folder")
        write_json(path, recipe.video_facts())
    elif changes := list(differences(read_json(path), recipe.video_facts())):
        summary = "; ".join(f"{name}: {old} -> {new}" for name, old, new in changes)
        raise InputError(f"{folder}: holds SignVid videos of another recipe ({summary}); choose another folder")


def _write_one(folder: Path, recipe: SignVidConfig, number: int) -> None:
    write_video(folder / video_name(number), render_video(recipe.plan(number)), FPS, options=CODEC)


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    output_folder(path.parent)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def read_truth(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The signs of each video, by its name. Raises InputError where there is no whole data set."""
    stored = _stored(Path(folder))
    if stored is None:
        raise InputError(f"{folder}: no SignVid data here (there is no {FACTS})")
    return stored["signs"]


def stored_recipe(folder: str | Path) -> SignVidConfig:
    """What the data set in this folder was made by."""
    read_truth(folder)  # refuses what is none
    facts = dict(read_json(Path(folder) / FACTS)["recipe"])
    return SignVidConfig(**{**facts, "shape": VideoShape(**facts["shape"])})


def _stored(folder: Path) -> dict[str, Any] | None:
    path = folder / FACTS
    if not path.is_file():
        return None
    stored = read_json(path)
    if stored.get("format") != FORMAT:
        raise InputError(f"{path}: format {stored.get('format')!r}, this version reads {FORMAT}")
    return stored


def ensure_signvid(folder: str | Path, recipe: SignVidConfig, *, workers: int = 1, progress: bool = False) -> Path:
    """The data set of this recipe in this folder, made if it is not there yet. Raises InputError for another one."""
    target = Path(folder)
    stored = _stored(target)
    if stored is None:
        return write_signvid(target, recipe, workers=workers, progress=progress)
    if stored["recipe"] != recipe.facts():
        raise InputError(f"{target}: holds SignVid data of another recipe; choose another folder")
    return target
