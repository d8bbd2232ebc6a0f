"""Generates the videos that the bundled gaze model is trained on: FOLDER/train/*.mp4 and FOLDER/val/*.mp4.

Every video is a few scenes, cut together. A scene is a background (a still photograph that comes with scikit-image or
scikit-learn, or a procedural texture) under a camera that pans, zooms, turns, shakes or stands; objects cut out of
other pictures that move over each other; text that stands, scrolls or turns up; fades, flicker and sensor noise. The
codec adds its own. Video number n of a split depends on the seed, the split and n alone, so a run can be continued and
a larger set begins with the smaller one. Some photographs are kept for val.

    python scripts/make_training_videos.py data/gaze --train 800 --val 40 --workers 2
"""

from __future__ import annotations

import argparse
import math
import string
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.video.writer import write_video

TRAIN_STILLS = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "china.jpg",
]
VAL_STILLS = ["coffee.png", "rocket.jpg", "text.png", "flower.jpg", "motorcycle_right.png"]
SIZES = ((320, 240), (320, 180), (256, 256), (240, 320), (288, 224), (384, 216))
WORDS = [
    "gate",
    "exit",
    "open",
    "sale",
    "level",
    "stop",
    "left",
    "north",
    "water",
    "train",
    "level",
    "24",
    "hours",
    "city",
    "market",
    "road",
    "hotel",
    "news",
    "live",
]

Path2D = Callable[[float], tuple[float, float]]


@cache
def stills(split: str) -> list[Image.Image]:
    """Photographs of a split, RGB, the short side 480 pixels."""
    import skimage
    import sklearn

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    pictures = []
    for name in TRAIN_STILLS if split == "train" else VAL_STILLS:
        found = [folder / name for folder in folders if (folder / name).is_file()]
        if found:  # releases differ a little in what they bring
            picture = Image.open(found[0]).convert("RGB")
            factor = 480 / min(picture.size)
            pictures.append(picture.resize((round(picture.width * factor), round(picture.height * factor))))
    if not pictures:
        raise InputError(f"none of the photographs for {split} were found in {folders[0]} and {folders[1]}")
    return pictures


def procedural(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coloured noise, a gradient, stripes or tiles."""
    kind = rng.choice(["noise", "noise", "gradient", "stripes", "tiles"])
    first, second = rng.integers(0, 256, (2, 3)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "noise":
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
        real, imaginary = np.moveaxis(rng.normal(size=(*frequency.shape, 2)), -1, 0)
        spectrum = (real + 1j * imaginary) / frequency ** rng.uniform(0.8, 1.8)
        mix = np.fft.irfft2(spectrum, s=(height, width)).astype(np.float32)
        mix = 0.5 + mix / (4 * mix.std() + 1e-6)
    else:
        angle = rng.uniform(0, math.pi)
        along = x * math.cos(angle) + y * math.sin(angle)
        if kind == "gradient":
            mix = (along - along.min()) / (np.ptp(along) + 1e-6)
        elif kind == "stripes":
            mix = 0.5 + 0.5 * np.sin(along * 2 * math.pi / rng.uniform(6, 60)) * rng.uniform(0.3, 1)
        else:
            side = rng.uniform(8, 60)
            mix = ((x // side + y // side) % 2) * rng.uniform(0.2, 1)
    picture = first + (second - first) * mix.clip(0, 1)[..., None]
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def picture(rng: np.random.Generator, split: str) -> Image.Image:
    """A photograph (three of four times), mirrored and recoloured at random, or a texture."""
    if rng.random() < 0.25:
        return procedural(rng, 480, 480)
    pool = stills(split)
    chosen = pool[rng.integers(len(pool))]
    if rng.random() < 0.5:
        chosen = chosen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        gain, shift = rng.uniform(0.6, 1.2, 3), rng.uniform(-30, 30, 3)
        pixels = np.asarray(chosen, dtype=np.float32) * gain + shift
        chosen = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return chosen


def path(rng: np.random.Generator, reach: float) -> Path2D:
    """A way in the plane over the time 0..1: straight, waving, in jumps, or halting."""
    start, velocity = rng.uniform(-0.5, 0.5, 2) * reach, rng.normal(0, 0.5, 2) * reach
    kind = rng.choice(["straight", "wave", "jumps", "halt"])
    rate, phase, amplitude = rng.uniform(0.5, 3), rng.uniform(0, 6.28), rng.uniform(0.05, 0.3) * reach
    stop = rng.uniform(0.2, 0.8)

    def at(time: float) -> tuple[float, float]:
        if kind == "jumps":
            time = math.floor(time * 6) / 6
        elif kind == "halt":
            time = min(time, stop)
        x, y = start + velocity * (time - 0.5)
        wave = amplitude * math.sin(phase + rate * 6.28 * time) if kind == "wave" else 0.0
        return x + wave, y + wave * 0.6

    return at


class Camera:
    """A window on a picture: its centre, zoom and turn over the time."""

    def __init__(self, rng: np.random.Generator, source: Image.Image, width: int, height: int) -> None:
        self.source, self.width, self.height = source, width, height
        moving = rng.random() < 0.65
        self.path = path(rng, 140.0 if moving else 0.0)
        self.speed = rng.choice([0.15, 0.5, 1.0, 2.0]) if moving else 0.0
        widest = 0.9 * min(source.width / width, source.height / height)
        self.zoom, self.zooming = rng.uniform(0.3, 1) * widest, rng.normal(0, 0.35) * (moving and rng.random() < 0.4)
        self.turn, self.turning = rng.normal(0, 0.1), rng.normal(0, 0.4) * (moving and rng.random() < 0.2)
        self.shake = rng.choice([0.0, 0.0, 0.4, 1.5])
        self.rng = rng

    def frame(self, time: float) -> Image.Image:
        x, y = self.path(time * self.speed)
        x, y = x + self.rng.normal(0, self.shake + 1e-9), y + self.rng.normal(0, self.shake + 1e-9)
        zoom, turn = self.zoom * math.exp(self.zooming * time), self.turn + self.turning * time
        cos, sin = math.cos(turn) * zoom, math.sin(turn) * zoom
        # At the edge of its reach the window turns back; what little lies outside of the picture is grey.
        centre_x = _fold(self.source.width / 2 + x, self.source.width)
        centre_y = _fold(self.source.height / 2 + y, self.source.height)
        offset_x = centre_x - cos * self.width / 2 + sin * self.height / 2
        offset_y = centre_y - sin * self.width / 2 - cos * self.height / 2
        view = (cos, -sin, offset_x, sin, cos, offset_y)
        return self.source.transform(
            (self.width, self.height), Image.Transform.AFFINE, view, Image.Resampling.BILINEAR, fillcolor=(60, 60, 64)
        )


def _fold(position: float, length: int) -> float:
    """Back and forth within the middle of `length`."""
    low, high = length * 0.3, length * 0.7
    span = high - low
    phase = (position - low) % (2 * span)
    return low + (phase if phase < span else 2 * span - phase)


class Sprite:
    """Something cut out of a picture along a blob, moving, turning and growing; it may turn up or leave in between."""

    def __init__(self, rng: np.random.Generator, split: str, width: int, height: int) -> None:
        side = int(rng.uniform(0.06, 0.45) * min(width, height)) * 2
        source = picture(rng, split)
        left, top = (int(rng.integers(0, max(limit - side, 1))) for limit in source.size)
        cut = source.crop((left, top, left + side, top + side))
        angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        radius = np.full(48, 0.42)
        for wave in range(2, 6):
            radius += rng.normal(0, 0.04) * np.cos(wave * angle + rng.uniform(0, 6.28))
        outline = np.stack([0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], axis=1) * side
        mask = Image.new("L", (side, side))
        if rng.random() < 0.3:
            ImageDraw.Draw(mask).rectangle((side * 0.1, side * 0.2, side * 0.9, side * 0.8), fill=255)
        else:
            ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in outline], fill=255)
        self.image = cut.convert("RGBA")
        self.image.putalpha(mask.filter(ImageFilter.GaussianBlur(1)))
        self.path, self.speed = path(rng, 0.9), rng.choice([0.0, 0.3, 1.0, 2.5])
        self.turning = rng.normal(0, 90) * (rng.random() < 0.3)
        self.growing = rng.normal(0, 0.5) * (rng.random() < 0.3)
        self.begin, self.end = (0.0, 1.1) if rng.random() < 0.7 else sorted(rng.uniform(0, 1.1, 2))

    def draw(self, frame: Image.Image, time: float) -> None:
        if not self.begin <= time < self.end:
            return
        image = self.image
        if self.growing:
            side = max(int(image.width * math.exp(self.growing * time)), 4)
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        if self.turning:
            image = image.rotate(self.turning * time, Image.Resampling.BILINEAR)
        x, y = self.path(time * self.speed)
        corner = (int((0.5 + x) * frame.width - image.width / 2), int((0.5 + y) * frame.height - image.height / 2))
        frame.paste(image, corner, image)


class Caption:
    """Words on a plate or none, standing, scrolling, or changing."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        size = int(rng.uniform(0.04, 0.16) * height)
        self.font = ImageFont.load_default(size=size)
        self.lines = ["\n".join(_words(rng) for _ in range(rng.integers(1, 4))) for _ in range(rng.integers(1, 4))]
        self.corner = rng.uniform(0.02, 0.75, 2) * (width, height)
        self.scroll = rng.normal(0, 0.5, 2) * (width, height) * (rng.random() < 0.3)
        light = rng.random() < 0.5
        self.ink = tuple(int(c) for c in (rng.integers(200, 256, 3) if light else rng.integers(0, 60, 3)))
        self.plate = None if rng.random() < 0.5 else tuple(int(c) for c in rng.integers(0, 120, 3) + 130 * (not light))
        self.begin = 0.0 if rng.random() < 0.6 else rng.uniform(0, 0.8)

    def draw(self, frame: Image.Image, time: float) -> None:
        if time < self.begin:
            return
        text = self.lines[min(int(time * len(self.lines)), len(self.lines) - 1)]
        pen = ImageDraw.Draw(frame)
        x, y = (float(v) for v in self.corner + self.scroll * time)
        if self.plate is not None:
            left, top, right, bottom = pen.multiline_textbbox((x, y), text, font=self.font)
            pen.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=self.plate)
        pen.multiline_text((x, y), text, fill=self.ink, font=self.font)


def _words(rng: np.random.Generator) -> str:
    chosen = [str(rng.choice(WORDS)) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.4:
        chosen.append("".join(rng.choice(list(string.ascii_uppercase + string.digits), rng.integers(2, 7))))
    return " ".join(chosen).title() if rng.random() < 0.5 else " ".join(chosen).upper()


def scene(
    rng: np.random.Generator, split: str, width: int, height: int, frames: int, noisy: bool = True
) -> Iterator[np.ndarray]:
    """Frames (height, width, 3) uint8."""
    camera = Camera(rng, picture(rng, split), width, height)
    sprites = [Sprite(rng, split, width, height) for _ in range(rng.choice([0, 1, 2, 3, 6]))]
    captions = [Caption(rng, width, height) for _ in range(rng.choice([0, 0, 1, 2]))]
    noise = rng.choice([0.0, 0.0, 1.5, 4.0, 8.0])
    flicker, fade = rng.choice([0.0, 0.0, 0.03]), rng.random() < 0.1
    blur = rng.uniform(0.5, 2.5) if rng.random() < 0.3 else 0.0
    for number in range(frames):
        time = number / max(frames - 1, 1)
        frame = camera.frame(time)
        if blur:
            frame = frame.filter(ImageFilter.GaussianBlur(blur))
        for thing in (*sprites, *captions):
            thing.draw(frame, time)
        pixels = np.asarray(frame, dtype=np.float32)
        gain = (1 + rng.normal(0, flicker + 1e-9)) * (min(1.0, 0.1 + 2 * time) if fade else 1.0)
        pixels = pixels * np.float32(gain)
        if noise and noisy:
            pixels = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(noise)
        yield pixels.clip(0, 255).astype(np.uint8)


def video(seed: int, split: str, number: int, frames: int, noisy: bool = True) -> Iterator[np.ndarray]:
    """One to three scenes of one size; now and then one frame is held, as in a recording of a screen. noisy: whether
    some have sensor noise."""
    rng = np.random.default_rng([seed, ("train", "val").index(split), number])
    width, height = SIZES[rng.integers(len(SIZES))]
    cuts = sorted(int(cut) for cut in rng.integers(1, frames, rng.choice([0, 0, 1, 2])))
    hold = rng.random() < 0.08
    last = None
    for start, end in zip([0, *cuts], [*cuts, frames], strict=True):
        for index, frame in enumerate(scene(rng, split, width, height, end - start, noisy)):
            last = last if hold and index % 8 and last is not None else frame
            yield last


def make(folder: Path, seed: int, split: str, number: int, frames: int) -> None:
    path = folder / split / f"{number:06}.mp4"
    if not path.exists():
        quality = 20 + (number * 7) % 12  # from good to poor
        options = {"preset": "veryfast", "crf": str(quality), "g": "16", "threads": "1"}
        write_video(path, video(seed, split, number, frames), fps=15, options=options)


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=800, help="videos for training")
    parser.add_argument("--val", type=int, default=40, help="videos for validation")
    parser.add_argument("--frames", type=int, default=48, help="frames of each video")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    return run_program(parser, make_all)


def make_all(arguments: argparse.Namespace) -> None:
    jobs = [("val", n) for n in range(arguments.val)] + [("train", n) for n in range(arguments.train)]
    with ProcessPoolExecutor(arguments.workers) as pool:
        running = [
            pool.submit(make, arguments.folder, arguments.seed, split, number, arguments.frames)
            for split, number in jobs
        ]
        for job in tqdm(running, unit="video", desc="generating"):
            job.result()


if __name__ == "__main__":
    sys.exit(main())
