"""Frames of a planned video, one at a time.

A frame is a window on the scene's texture, moved by whole pixels, with things pasted in and noise added as bytes: no
pixel is computed twice, so 4K videos take tens of milliseconds a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .backgrounds import DARKEST, LIGHTEST, background
from .plan import Scene, VideoPlan, camera_reach
from .signs import COLOURS, draw_plate, draw_sign

NOISE = 6  # levels up and down
ROOM = 64  # pixels by which the noise is larger than the frame, so that it can be shifted from frame to frame


@dataclass
class _Distractor:
    """Something without text that moves on screen and turns back at the edges."""

    pixels: np.ndarray
    mask: np.ndarray  # (h, w, 1) bool
    start: np.ndarray
    velocity: np.ndarray

    def paste(self, frame: np.ndarray, time: int) -> None:
        height, width = self.pixels.shape[:2]
        room = np.array([frame.shape[1] - width, frame.shape[0] - height])
        x, y = np.abs((self.start * room + self.velocity * time + room) % (2 * room) - room).astype(int)
        part = frame[y : y + height, x : x + width]
        np.copyto(part, self.pixels, where=self.mask)


def render_video(plan: VideoPlan) -> Iterator[np.ndarray]:
    """Frames (height, width, 3) uint8; each is the caller's own."""
    shape = plan.shape
    noise, sensor = _noise(plan), _Sensor(plan)
    plates = [
        draw_sign(shown.sign, np.random.default_rng([*plan.seed, 2, number]), shape.size)
        for number, shown in enumerate(plan.signs)
    ]
    for number, scene in enumerate(plan.scenes):
        rng = np.random.default_rng([*plan.seed, 1, number])
        reach = camera_reach(shape)
        world = background(scene.family, shape.width + 2 * reach, shape.height + 2 * reach, rng)
        distractors = [_distractor(plan, rng) for _ in range(_crowd(plan, rng))]
        for time in range(scene.start, scene.end):
            frame = _window(world, scene, time, plan)
            for thing in distractors:
                thing.paste(frame, time - scene.start)
            for shown, plate in zip(plan.signs, plates, strict=True):
                if shown.start <= time < shown.end:
                    x, y = shown.x, shown.y
                    frame[y : y + plate.shape[0], x : x + plate.shape[1]] = plate
            dx, dy = rng.integers(0, ROOM, 2)
            frame += noise[dy : dy + shape.height, dx : dx + shape.width]  # bytes below zero count from 256 down
            yield sensor.expose(frame) if shape.noise else frame


class _Sensor:
    """What a camera adds: shot and read noise, larger where the picture is brighter, other in every frame. Drawn apart
    from all else, so that a noisy video shows what the clean one does."""

    def __init__(self, plan: VideoPlan) -> None:
        shape = plan.shape
        self.rng = np.random.default_rng([*plan.seed, 5])
        size = (shape.height + ROOM, shape.width + ROOM, 3) if shape.noise else (0, 0, 3)
        self.grain = self.rng.standard_normal(size, dtype=np.float32)
        levels = np.arange(256, dtype=np.float32) / 255
        self.strength = 255 * np.float32(shape.noise) * np.sqrt(0.3 + 1.4 * levels)

    def expose(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        dy, dx = self.rng.integers(0, ROOM, 2)
        grain = self.grain[dy : dy + height, dx : dx + width] * self.rng.choice([-1, 1])
        noisy = frame + self.strength[frame] * grain
        return noisy.round().clip(0, 255).astype(np.uint8)


def _window(world: np.ndarray, scene: Scene, time: int, plan: VideoPlan) -> np.ndarray:
    x, y = scene.camera[time - scene.start]
    return world[y : y + plan.shape.height, x : x + plan.shape.width].copy()


def _noise(plan: VideoPlan) -> np.ndarray:
    rng = np.random.default_rng([*plan.seed, 3])
    height, width = plan.shape.height + ROOM, plan.shape.width + ROOM
    return rng.integers(-NOISE, NOISE + 1, (height, width, 1), dtype=np.int8).view(np.uint8)


def _crowd(plan: VideoPlan, rng: np.random.Generator) -> int:
    """How many distractors a scene has."""
    most = min(plan.shape.width * plan.shape.height // 90_000 + 2, 24)
    return int(rng.integers(1, most + 1))


def _distractor(plan: VideoPlan, rng: np.random.Generator) -> _Distractor:
    """An empty plate, a disc or a bar."""
    kind, scale = rng.choice(["plate", "plate", "disc", "bar"]), plan.shape.size / 14
    height, width = (int(side) for side in rng.uniform(20, 44, 2) * scale)
    widest, tallest = plan.shape.width // 2, plan.shape.height // 2  # it needs room to move
    height = min(height, tallest, widest)
    colour = str(rng.choice(list(COLOURS)))
    if kind == "plate":
        pixels = draw_plate(colour, height, min(width + height // 2, widest), rng, plan.shape.size)
        mask = np.ones((*pixels.shape[:2], 1), dtype=bool)
    else:
        width = min(3 * width, widest) if kind == "bar" else height
        pixels = np.broadcast_to(np.array(COLOURS[colour], dtype=np.float32), (height, width, 3))
        y, x = np.mgrid[0:height, 0:width]
        round_ = np.hypot(x - width / 2 + 0.5, y - height / 2 + 0.5) <= height / 2
        mask = np.where(kind == "disc", round_, True)[..., None]
    return _Distractor(
        pixels.clip(DARKEST, LIGHTEST).astype(np.uint8), mask, rng.uniform(0, 1, 2), rng.uniform(-5, 5, 2)
    )
