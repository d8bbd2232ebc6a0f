"""Writes docs/overlay.png, the picture of README and manual: one frame of the demo's overlay video.

python scripts/readme_picture.py demo_out/overlay.mp4 3
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.video.reader import VideoReader

TARGET = Path(__file__).resolve().parents[1] / "docs" / "overlay.png"


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("overlay", type=Path, help="what the demo wrote")
    parser.add_argument("frame", type=int)
    return run_program(parser, draw)


def draw(arguments: argparse.Namespace) -> None:
    chunk = next(VideoReader(arguments.overlay).read([arguments.frame]))
    Image.fromarray(chunk.frames[0]).save(TARGET, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
