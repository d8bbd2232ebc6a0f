"""Writes a small data set for fine-tuning: clips of a box in one of eight colours, each with a question and its answer.

python scripts/make_finetune_data.py data      # data/train.jsonl and the clips beside it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.video.writer import write_video

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 40),
    "blue": (40, 60, 220),
    "yellow": (235, 220, 40),
    "purple": (150, 40, 170),
    "orange": (245, 140, 20),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
QUESTION = "What colour is the box?"


def moving_box(colour: tuple[int, int, int], frames: int = 8, side: int = 64) -> Iterator[np.ndarray]:
    """Frames (side, side, 3): the box crosses a grey wall."""
    for number in range(frames):
        frame = np.full((side, side, 3), 128, dtype=np.uint8)
        left = round(number / (frames - 1) * side * 0.3)
        frame[side // 5 : side * 4 // 5, left : left + side * 2 // 3] = colour
        yield frame


def write_data(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, colour in COLOURS.items():
        write_video(folder / f"{name}.mp4", moving_box(colour), fps=8)
        turns = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": name}]
        rows.append({"id": name, "video": f"{name}.mp4", "conversations": turns})
    path = folder / "train.jsonl"
    path.write_text("".join(to_json(row) + "\n" for row in rows))
    return path


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path)
    return run_program(parser, lambda given: print(write_data(given.folder)))


if __name__ == "__main__":
    sys.exit(main())
