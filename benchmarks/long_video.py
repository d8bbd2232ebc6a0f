"""Memory and time of `gaze_video` on a long 4K video.

Makes a 3840x2160 H.264 video with a still background and moving parts once, and gazes its first 64 frames and all,
each in a process of its own. Reported for each: peak memory above what the process held after loading the selector,
that peak without the kept patches, wall time, and the pure times of decoding, resizing and selecting, each measured
alone in the same process (resizing and selecting on --pure-chunks chunks, scaled to the whole).

    python benchmarks/long_video.py --gaze pixel-diff-raw --out benchmarks/results/long_video_pixel_diff_raw.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import size_of
from autogaze_mllm.common.compute.memory import PeakMemory
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.pixels import resize_frames
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.gaze.pipeline import cut_tiles
from autogaze_mllm.gaze.selectors.base import Selector, stop_rule
from autogaze_mllm.gaze.settings import VideoSettings, preset
from autogaze_mllm.video import PYAV, Decoder
from autogaze_mllm.video.sampling import sample_frames
from autogaze_mllm.video.tiles import choose_tiles
from autogaze_mllm.video.writer import video_writer

GRID = am.PatchGrid.of("56+112+196+392", 14)


def make_video(path: Path, width: int, height: int, frames: int) -> None:
    """A still, textured background; a block and a small square that move."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    background = rng.integers(60, 200, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8)
    background = background.repeat(40, 0).repeat(40, 1)[:height, :width]
    with video_writer(path, 30, options={"preset": "ultrafast", "g": "250", "crf": "23"}) as write:
        for number in range(frames):
            frame = background.copy()
            x, y = (number * 7) % (width - 400), (number * 3) % (height - 300)
            frame[y : y + 300, x : x + 400] = (200, 60, 40)
            x, y = (number * 13) % (width - 60), height // 3
            frame[y : y + 60, x : x + 60] = (30, 60, 220)
            write(frame)


def random_gaze_model(size: str) -> am.AutoGaze:
    """Random weights: neither memory nor time depend on them."""
    from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig, GazeDecoderConfig, GazeEncoderConfig

    torch.manual_seed(0)
    if size == "released":
        return am.AutoGaze().eval()
    encoder = GazeEncoderConfig(hidden_dim=16, out_dim=32)
    decoder = GazeDecoderConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    return am.AutoGaze(AutoGazeConfig(encoder=encoder, decoder=decoder)).eval()


def selector_named(name: str) -> Selector:
    if name in ("tiny-autogaze", "random-autogaze"):
        return random_gaze_model("released" if name == "random-autogaze" else "tiny")
    return am.PixelDiffSelector(noise_floor=name == "pixel-diff")


def pure_times(path: Path, settings: VideoSettings, selector: Selector, chunks: int) -> dict[str, float]:
    """Seconds of each part alone, one after the other. Resizing and selecting are measured on `chunks` chunks from all
    over the video and scaled to the whole."""
    reader = am.Video(path).open(settings.decoder)
    indices = sample_frames(len(reader), settings.frames)
    start = time.perf_counter()
    for _ in reader.read(indices, chunk=1):
        pass
    decode = time.perf_counter() - start
    resize = select = 0.0
    groups = [indices[n : n + settings.chunk_frames] for n in range(0, len(indices), settings.chunk_frames)]
    picked = [groups[round(n)] for n in np.linspace(0, len(groups) - 1, min(chunks, len(groups)))]
    for group in picked:
        frames = next(iter(reader.read(group, chunk=len(group)))).frames
        tiles = choose_tiles(frames.shape[2], frames.shape[1], settings.max_tiles, GRID.scales[-1][0])
        start = time.perf_counter()
        size = (tiles[1] * GRID.scales[-1][0], tiles[0] * GRID.scales[-1][1])
        pictures = torch.cat([resize_frames(frame[None], *size, torch.device("cpu")) for frame in frames])
        resize += time.perf_counter() - start
        del frames
        start = time.perf_counter()
        rule = stop_rule(settings.loss, selector, settings)
        with torch.no_grad():
            for begin in range(0, tiles[0] * tiles[1], 4):
                clips = cut_tiles(pictures, tiles, begin, min(begin + 4, tiles[0] * tiles[1]))
                selector.select(clips.float() / 255, GRID, settings.ratio_for(len(group)), rule)
        select += time.perf_counter() - start
    scale = len(indices) / sum(map(len, picked))
    return {"decode": decode, "resize": resize * scale, "select": select * scale}


def measure(path: Path, frames: int, gaze: str, chunks: int, decoder: Decoder) -> dict[str, float]:
    """In a process of its own: everything about one run."""
    selector = selector_named(gaze)
    # The first 64 frames of the video, or all of it, at the video's own rate.
    settings = preset("nvila-hd-1k").changed(frames=frames, thumbnails=min(64, frames), decoder=decoder)
    memory = PeakMemory()
    start = time.perf_counter()
    gazed = am.gaze_video(path, selector, settings, grid=GRID, progress=True)
    wall = time.perf_counter() - start
    peak = memory.above
    patches = gazed.patches.numel() * gazed.patches.element_size()
    pure = pure_times(path, settings, selector, chunks)
    return {
        "frames": gazed.stats["frames"],
        "kept_patches": len(gazed),
        "patches_total": gazed.total_patches,
        "peak_gib": peak / 2**30,
        "patches_gib": patches / 2**30,
        "peak_without_patches_gib": (peak - patches) / 2**30,
        "wall_seconds": wall,
        "pure_seconds": pure,
        "wall_over_pure": wall / sum(pure.values()),
        "stage_seconds": gazed.stats["seconds"],
    }


def main() -> int:
    parser = program_parser(__doc__)
    named = ["pixel-diff", "pixel-diff-raw", "tiny-autogaze", "random-autogaze"]
    parser.add_argument("--gaze", default="pixel-diff", choices=named)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--size", default="3840x2160")
    parser.add_argument("--decoder", choices=get_args(Decoder), default=PYAV, help="what decodes the video")
    parser.add_argument("--video-folder", type=Path, default=Path("benchmarks/data"))
    parser.add_argument("--pure-chunks", type=int, default=4)
    parser.add_argument("--out", type=Path, help="json file")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    width, height = size_of(arguments.size)
    short = min(64, arguments.frames)
    paths = {n: arguments.video_folder / f"{width}x{height}_{n}.mp4" for n in (short, arguments.frames)}
    if arguments.measure is not None:
        frames, decoder = arguments.measure, arguments.decoder
        print(to_json(measure(paths[frames], frames, arguments.gaze, arguments.pure_chunks, decoder)))
        return
    runs = {}
    for frames, path in paths.items():
        make_video(path, width, height, frames)
        command = [sys.executable, __file__, "--measure", str(frames), *sys.argv[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs[frames] = json.loads(done.stdout)
    first, last = runs[short], runs[arguments.frames]
    growth = last["peak_without_patches_gib"] / first["peak_without_patches_gib"] - 1
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(),
        "gaze": arguments.gaze,
        "decoder": arguments.decoder,
        "size": arguments.size,
        "runs": list(runs.values()),
        "peak_growth": growth,
        "targets": {
            "peak at most 3 GiB": last["peak_gib"] <= 3,
            "peak without patches at most 10 % more than for the short one": growth <= 0.1,
            "wall at most 1.2 x the pure parts": last["wall_over_pure"] <= 1.2,
        },
    }
    print(to_json(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
