"""One row of each benchmark as published, written by hand in its own layout: nothing of the generator is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

Rows = list[dict[str, Any]]

HLVID: Rows = [
    {
        "question_id": "17",
        "category": "driving",
        "video_path": "drive_03.mp4",
        "question": "What does the sign say?\nA. STOP\nB. GO\nC. SLOW\nD. YIELD\nAnswer with the letter.",
        "answer": "B",
    }
]
VIDEOMME: Rows = [
    {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
        "videoID": "fFjv93ACGo8",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many candles are lit?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": "C",
    }
]
MVBENCH: Rows = [
    {
        "video": "166583.webm",
        "question": "What is the action?",
        "candidates": ["Not sure", "Scattering", "Piling"],
        "answer": "Piling",
    }
]
NEXTQA: Rows = [
    {
        "video": 4010069381,
        "frame_count": 369,
        "width": 640,
        "height": 480,
        "question": "how do the two man play the instrument ",
        "answer": 3,
        "qid": 6,
        "type": "CH",
        "a0": "roll the handle",
        "a1": "tap their feet",
        "a2": "strum the string",
        "a3": "hit with sticks ",
        "a4": "pat with hand",
    }
]
LONGVIDEOBENCH: Rows = [
    {
        "id": "86CxyhFV9MI_0",
        "video_id": "86CxyhFV9MI",
        "video_path": "86CxyhFV9MI.mp4",
        "question": "What changes on the desk?",
        "question_category": "TOS",
        "duration_group": 600,
        "correct_choice": 1,
        "option0": "a cup",
        "option1": "a pen",
        "option2": "a lamp",
        "option3": "N/A",
        "option4": "N/A",
    }
]
EGOSCHEMA: Rows = [
    {
        "question_idx": "0",
        "question": "What is C doing?",
        "video_idx": "0074f737",
        "option": ["A. C cooks.", "B. C cleans.", "C. C reads.", "D. C knits.", "E. C sings."],
        "answer": "4",
    }
]
MLVU: Rows = [
    {
        "video_name": "movie101_66.mp4",
        "duration": 2432.0,
        "question": "What colour is the car?\n(A) red\n(B) blue\n(C) white\n(D) black",
        "answer": "D",
        "task_type": "plotQA",
    }
]


def write_parquet(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_json(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


# Benchmark -> the row, where its file lies, how it is written, and where the video is expected.
Layout = tuple[Rows, str, Callable[[Path, Rows], Path], str]
LAYOUTS: dict[str, Layout] = {
    "hlvid": (HLVID, "data/test-00000-of-00001.parquet", write_parquet, "videos/drive_03.mp4"),
    "videomme": (VIDEOMME, "videomme/test-00000-of-00001.parquet", write_parquet, "data/fFjv93ACGo8.mp4"),
    "mvbench": (MVBENCH, "json/action_antonym.json", write_json, "ssv2_video_mp4/166583.webm"),
    "nextqa": (NEXTQA, "MC/test-00000-of-00001.parquet", write_parquet, "NExTVideo/4010069381.mp4"),
    "longvideobench": (
        LONGVIDEOBENCH,
        "validation-00000-of-00001.parquet",
        write_parquet,
        "videos/86CxyhFV9MI.mp4",
    ),
    "egoschema": (EGOSCHEMA, "Subset/test-00000-of-00001.parquet", write_parquet, "videos/0074f737.mp4"),
    "mlvu": (MLVU, "data/test-00000-of-00001.parquet", write_parquet, "videos/movie101_66.mp4"),
}


def write_sample(name: str, folder: Path, **changes: Any) -> Path:
    """The benchmark's one row, with changed values (None: the column is left out). -> its file."""
    rows, path, write, _ = LAYOUTS[name]
    changed = [{key: value for key, value in {**row, **changes}.items() if value is not None} for row in rows]
    return write(folder / path, changed)
