"""Packs real clips, and generated ones, small enough to travel: the input of train_gaze_real.py.

PACK/{train,validation,generated}/NAME.mp4 are the clips with the short side at most --side pixels. Beside a clip of
train or generated lie the same frames as a camera might have stored them: NAME~compressed.mp4, or NAME~noisy.mp4 with
sensor noise before the encoder. They show the same places, so what is cut out of one can be cut out of the other.
real_split.json says which real clips are for validation: no source has clips in both.

    python scripts/pack_clips.py videos/ PACK --generated 120
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from autogaze_mllm.cli import program_parser, run_program

sys.path.insert(0, str(Path(__file__).parent))

from make_training_videos import video as generated_video

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.pixels import resize_frames
from autogaze_mllm.common.storage.files import read_json
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.training.data.clips import find_videos
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.writer import write_video

SPLIT = Path(__file__).parent / "real_split.json"
FPS = 25  # of the packed files; what they are played at does not matter


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("videos", help="folder of real clips")
    parser.add_argument("pack", type=Path)
    parser.add_argument("--side", type=int, default=256, help="short side at most (default 256)")
    parser.add_argument("--quality", type=int, default=26, help="crf of the clips themselves (default 26)")
    parser.add_argument("--generated", type=int, default=0, help="generated clips beside them")
    parser.add_argument("--generated-frames", type=int, default=24)
    parser.add_argument("--limit", type=int, help="real clips at most, for a trial")
    parser.add_argument("--workers", type=int, default=2)
    return run_program(parser, pack)


def pack(arguments: argparse.Namespace) -> None:
    paths = find_videos(arguments.videos)[: arguments.limit]
    if not paths:
        raise InputError(f"{arguments.videos}: no videos there")
    held = set(read_json(SPLIT)["validation"])
    out, side, quality = arguments.pack, arguments.side, arguments.quality
    with ProcessPoolExecutor(arguments.workers) as pool:
        jobs = [
            pool.submit(pack_real, path, out / ("validation" if path.name in held else "train"), side, quality, number)
            for number, path in enumerate(paths)
        ]
        jobs += [
            pool.submit(pack_generated, out / "generated", number, arguments.generated_frames, quality)
            for number in range(arguments.generated)
        ]
        for job in tqdm(jobs, unit="clip", desc="packing"):
            job.result()
    sizes = {part.name: sum(f.stat().st_size for f in part.glob("*.mp4")) / 2**20 for part in sorted(out.iterdir())}
    print(
        to_json({"MiB": {name: round(size, 2) for name, size in sizes.items()}, "all": round(sum(sizes.values()), 2)})
    )


def pack_real(path: Path, folder: Path, side: int, quality: int, number: int) -> None:
    if (folder / f"{path.stem}.mp4").exists():
        return
    chunks = [chunk.frames for chunk in VideoReader(path, threads=1).read()]
    height, width = chunks[0].shape[1:3]
    factor = min(side / min(height, width), 1.0)
    size = (round(height * factor / 2) * 2, round(width * factor / 2) * 2)
    small = np.concatenate([resize_frames(c, *size, torch.device("cpu")).permute(0, 2, 3, 1).numpy() for c in chunks])
    write_versions(small, folder, path.stem, quality, number, disturbed=folder.name == "train")


def pack_generated(folder: Path, number: int, frames: int, quality: int) -> None:
    name = f"{number:04}"
    if not (folder / f"{name}.mp4").exists():
        clip = np.stack(list(generated_video(7, "train", number, frames, noisy=False)))
        write_versions(clip, folder, name, quality + 2, number, disturbed=True)


def write_versions(clip: np.ndarray, folder: Path, name: str, quality: int, number: int, disturbed: bool) -> None:
    """The clip itself comes last: where it is, the others are."""
    if disturbed:
        rng = np.random.default_rng([11, number])
        if number % 2:
            noisy = add_noise(clip, rng, float(np.exp(rng.uniform(np.log(4), np.log(20)))))
            encode(folder / f"{name}~noisy.mp4", noisy, int(rng.integers(34, 40)))
        else:
            encode(folder / f"{name}~compressed.mp4", clip, int(rng.integers(32, 43)))
    encode(folder / f"{name}.mp4", clip, quality)


def add_noise(clip: np.ndarray, rng: np.random.Generator, strength: float) -> Iterator[np.ndarray]:
    """strength: standard deviation at mid grey, of 255; darker places have less (shot noise)."""
    for frame in clip:
        spread = strength * np.sqrt(0.3 + 0.7 * frame.astype(np.float32) / 128)
        yield (frame + spread * rng.standard_normal(frame.shape, dtype=np.float32)).clip(0, 255).astype(np.uint8)


def encode(path: Path, frames: np.ndarray | Iterator[np.ndarray], quality: int) -> None:
    options = {"preset": "slow", "crf": str(quality), "g": "64", "threads": "1"}
    write_video(path, frames, fps=FPS, options=options)


if __name__ == "__main__":
    sys.exit(main())
