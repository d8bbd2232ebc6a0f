"""Which patches of a video are worth looking at, frame by frame.

python examples/gaze_a_video.py clip.mp4 --out overlay.mp4
python examples/gaze_a_video.py clip.mp4 --gaze pixel-diff --frames 16 --ratio 0.1
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import autogaze_mllm as am
from autogaze_mllm.gaze.pictures.overlay import Overlay
from autogaze_mllm.video.writer import video_writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--gaze", default="bundled", help="gaze model id or folder, bundled, pixel-diff, random or all")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--ratio", type=float, default=0.25, help="share of a frame's patches that may be kept")
    parser.add_argument("--out", type=Path, help="video of the kept patches and the picture rebuilt from them")
    parser.add_argument("--save", type=Path, help="file for the kept patches, to ask a model about later")
    arguments = parser.parse_args()

    settings = am.VideoSettings(frames=arguments.frames, ratio=arguments.ratio)
    grid = am.AutoGaze.from_pretrained().grid  # 32+64+112+224 pixels, 16 a patch: 265 patches of a frame
    with video_writer(arguments.out, fps=4) if arguments.out else nullcontext(None) as write:
        overlay = Overlay(grid, write)
        gazed = am.gaze_video(arguments.video, arguments.gaze, settings, grid=grid, listener=overlay)

    for seconds, kept in zip(gazed.timestamps.tolist(), gazed.frame_counts.tolist(), strict=True):
        print(f"{seconds:7.2f} s  {kept:4} patches  {'#' * (-(-kept * 60 // grid.size))}")
    print(f"{len(gazed)} of {gazed.total_patches} patches kept; rebuilt from them: {overlay.psnr:.1f} dB")
    if arguments.save:
        gazed.save(arguments.save)


if __name__ == "__main__":
    main()
