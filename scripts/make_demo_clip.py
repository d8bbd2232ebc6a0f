"""Writes the demo's clip: a moving scene with a small sign that turns up after a quarter of it."""

from __future__ import annotations

import argparse

from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="video file to write")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--text", default="GATE 7", help="what the sign says")
    arguments = parser.parse_args()
    scene = moving_scene(arguments.width, arguments.height, arguments.frames, arguments.text)
    write_video(arguments.path, scene, fps=25)
