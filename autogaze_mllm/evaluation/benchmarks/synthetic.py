"""Small made-up data sets in the published layouts: generated videos, questions about nothing, real file formats.

For tests and for trying the harness without the data; what a model scores on them means nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.storage.files import output_folder, read_fields, write_json, write_text
from ...common.storage.json_text import to_json
from ...common.storage.locks import wait_lock
from ...video.synthetic import moving_scene
from ...video.writer import write_video
from .mvbench import VIDEOS as MVBENCH_VIDEOS

WORDS = ("red ball", "blue box", "white sign", "green field", "grey sky", "small text", "long road", "tall tree")
ASKED = ("What moves in the video?", "What turns up last?", "What stands on the right?", "What is never seen?")
Rows = list[dict[str, Any]]


class _Maker:
    """Draws questions and writes files below a folder."""

    def __init__(self, folder: Path, videos: int, seed: int) -> None:
        self.folder, self.videos, self.random = folder, videos, random.Random(seed)
        self.written = 0  # videos

    def options(self, count: int) -> list[str]:
        return self.random.sample(WORDS, count)

    def ask(self) -> str:
        return self.random.choice(ASKED)

    def names(self) -> Iterator[tuple[int, str]]:
        for number in range(self.videos):
            yield number, f"video_{number:03}"

    def video(self, path: str) -> None:
        number, self.written = self.written, self.written + 1
        scene = moving_scene(96, 64, 10 + 2 * (number % 3), seed=number)
        write_video(self.folder / path, scene, fps=5, options={"threads": "1"})

    def parquet(self, path: str, rows: Rows) -> None:
        import pyarrow
        from pyarrow import parquet

        output_folder((self.folder / path).parent)
        parquet.write_table(pyarrow.Table.from_pylist(rows), self.folder / path)

    def json(self, path: str, rows: Rows) -> None:
        output_folder((self.folder / path).parent)
        write_text(self.folder / path, to_json(rows, indent=1) + "\n")

    def srt(self, path: str, cues: list[tuple[float, float, str]]) -> None:
        output_folder((self.folder / path).parent)
        blocks = [
            f'{number}\n{_clock(start)} --> {_clock(end)}\n<font color="white" size=".72c">{text}</font>\n'
            for number, (start, end, text) in enumerate(cues, 1)
        ]
        (self.folder / path).write_text("\n".join(blocks), encoding="utf-8")


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"


def _lettered(options: list[str], form: str = "{}. {}") -> list[str]:
    return [form.format("ABCDEF"[index], option) for index, option in enumerate(options)]


def _hlvid(make: _Maker) -> None:
    rows: Rows = []
    for number, name in make.names():
        for _ in range(3 + number % 2):
            options = "\n".join(_lettered(make.options(4)))
            instruction = "Please answer directly with the letter of the correct answer."
            rows.append(
                {
                    "question_id": f"q{len(rows):04}",
                    "category": ("driving", "household", "sports")[len(rows) % 3],
                    "video_path": f"{name}.mp4",
                    "question": f"{make.ask()}\n{options}\n{instruction}",
                    "answer": make.random.choice("ABCD"),
                }
            )
        make.video(f"videos/{name}.mp4")
    make.parquet("data/test-00000-of-00001.parquet", rows)


def _videomme(make: _Maker) -> None:
    rows: Rows = []
    for number, name in make.names():
        for question in range(3):
            rows.append(
                {
                    "video_id": f"{number + 1:03}",
                    "duration": ("short", "medium", "long")[number % 3],
                    "domain": ("Knowledge", "Life Record")[number % 2],
                    "sub_category": ("Technology", "Travel")[number % 2],
                    "url": f"https://example.org/{name}",
                    "videoID": name,
                    "question_id": f"{number + 1:03}-{question + 1}",
                    "task_type": ("Object Recognition", "Counting Problem", "OCR Problems")[question],
                    "question": make.ask(),
                    "options": [f"{text}." for text in _lettered(make.options(4))],
                    "answer": make.random.choice("ABCD"),
                }
            )
        make.video(f"data/{name}.mp4")
        if number != 1:  # as published, some videos have no subtitles
            make.srt(f"subtitle/{name}.srt", [(0.0, 0.7, f"This is video {number}."), (0.7, 90.0, "And it goes on.")])
    make.parquet("videomme/test-00000-of-00001.parquet", rows)


def _mvbench(make: _Maker) -> None:
    for number, (task, videos) in enumerate(MVBENCH_VIDEOS.items()):
        rows: Rows = []
        for question in range(2):
            options = make.options(3 + number % 3)
            name = f"{task}_{question}.mp4"
            rows.append(
                {"video": name, "question": make.ask(), "candidates": options, "answer": make.random.choice(options)}
            )
            make.video(f"{videos}/{name}")
        make.json(f"json/{task}.json", rows)


def _nextqa(make: _Maker) -> None:
    rows: Rows = []
    for number, _ in make.names():
        video = 4_000_000 + number
        for question, kind in enumerate(("CW", "TN", "DO")):
            row = {"video": video, "frame_count": 12, "width": 96, "height": 64, "question": make.ask()}
            row |= {"answer": make.random.randrange(5), "qid": question, "type": kind}
            rows.append(row | {f"a{index}": option for index, option in enumerate(make.options(5))})
        make.video(f"NExTVideo/{video}.mp4")
    make.parquet("MC/test-00000-of-00001.parquet", rows)


def _longvideobench(make: _Maker) -> None:
    rows: Rows = []
    for number, name in make.names():
        for question in range(2):
            options = make.options(4 + question)
            row = {
                "video_id": name,
                "question": make.ask(),
                "correct_choice": make.random.randrange(len(options)),
                "id": f"{name}_{question}",
                "video_path": f"{name}.mp4",
                "subtitle_path": f"{name}_en.json",
                "question_category": ("S2E", "TOS")[question],
                "duration_group": (15, 60, 600, 3600)[number % 4],
                "duration": 2.4,
            }
            padded = options + ["N/A"] * (5 - len(options))
            rows.append(row | {f"option{index}": option for index, option in enumerate(padded)})
        make.video(f"videos/{name}.mp4")
    make.parquet("validation-00000-of-00001.parquet", rows)


def _egoschema(make: _Maker) -> None:
    rows: Rows = []
    for number, name in make.names():
        options = [f"{text}." for text in _lettered(make.options(5))]
        row = {"question_idx": str(number), "question": make.ask(), "video_idx": name, "option": options}
        rows.append(row | {"answer": str(make.random.randrange(5))})
        make.video(f"videos/{name}.mp4")
    make.parquet("Subset/test-00000-of-00001.parquet", rows[: max(len(rows) - 1, 1)])
    make.parquet("GENERATION/test-00000-of-00001.parquet", [row | {"answer": None} for row in rows])


def _mlvu(make: _Maker) -> None:
    tasks = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
    rows: Rows = []
    for number, name in make.names():
        for question in range(2):
            options = "\n".join(_lettered(make.options(4), "({}) {}"))
            row = {"video_name": f"{name}.mp4", "duration": 2.4, "question": f"{make.ask()}\n{options}"}
            row |= {"answer": make.random.choice("ABCD"), "task_type": tasks[(2 * number + question) % 7]}
            rows.append(row)
        make.video(f"{name}.mp4")
    make.parquet("data/test-00000-of-00001.parquet", rows)


MAKERS: dict[str, Callable[[_Maker], None]] = {
    "hlvid": _hlvid,
    "videomme": _videomme,
    "mvbench": _mvbench,
    "nextqa": _nextqa,
    "longvideobench": _longvideobench,
    "egoschema": _egoschema,
    "mlvu": _mlvu,
}


def write_made_up(name: str, folder: str | Path, *, videos: int = 4, seed: int = 0) -> Path:
    """Writes a small data set of this benchmark; the same arguments give the same data. -> the folder.

    videos: how many (MVBench has two for each of its tasks).
    """
    if name not in MAKERS:
        raise InputError(f"no benchmark {name!r}; known: {', '.join(MAKERS)}")
    if videos < 1:
        raise InputError(f"a data set needs at least 1 video, got {videos}")
    target = output_folder(folder)
    MAKERS[name](_Maker(target, videos, seed))
    return target


MARK, BEGUN = "made_up.json", ".made-up-begun"


def ensure_made_up(name: str, folder: str | Path) -> Path:
    """The made-up data set in this folder, written if it is not there yet; also by several processes at once.

    Raises InputError when the folder holds something else.
    """
    target = output_folder(folder)
    with wait_lock(target / ".lock"):
        if (target / MARK).is_file():
            found = read_fields(target / MARK).get("benchmark", str)
            if found != name:
                raise InputError(f"{target}: holds made-up data for {found}, not {name}")
        else:
            begun = target / BEGUN  # a killed process leaves it: all files are written again
            if not begun.exists() and any(path.name != ".lock" for path in target.iterdir()):
                raise InputError(f"{target}: is not empty, and not a made-up data set; choose another folder")
            write_text(begun, "made-up data, not complete yet\n")
            write_made_up(name, target)
            write_json(target / MARK, {"benchmark": name})
            begun.unlink()
    return target
