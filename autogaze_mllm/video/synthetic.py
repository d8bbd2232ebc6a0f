"""A generated clip: a moving scene with small text, so that demos and tests need no file."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def moving_scene(
    width: int = 640, height: int = 360, frames: int = 48, text: str = "GATE 7", seed: int = 0
) -> Iterator[np.ndarray]:
    """Frames (height, width, 3) uint8: a still, textured background, a moving ball and box, a small sign with text."""
    rng = np.random.default_rng(seed)
    background = _background(width, height, rng)
    sign_size = max(height // 24, 8)
    font = ImageFont.load_default(size=sign_size)
    sign_x, sign_y = int(width * 0.68), int(height * 0.18)
    left, _, right, bottom = font.getbbox(text)
    for number in range(frames):
        phase = number / max(frames - 1, 1)
        image = Image.fromarray(background)
        draw = ImageDraw.Draw(image)
        x = width * (0.1 + 0.7 * phase)
        y = height * (0.65 + 0.12 * math.sin(phase * 4 * math.pi))
        radius = height * 0.07
        draw.ellipse(
            [x - radius, y - radius, x + radius, y + radius], fill=(220, 70, 50), outline=(90, 20, 10), width=2
        )
        box = width * (0.8 - 0.5 * phase)
        draw.rectangle([box, height * 0.42, box + width * 0.06, height * 0.5], fill=(40, 90, 200))
        # The sign turns up after a quarter of the clip: something new in a place that was still.
        if phase >= 0.25:
            pad = sign_size // 3
            draw.rectangle([sign_x, sign_y, sign_x + right + 2 * pad, sign_y + bottom + 2 * pad], fill=(250, 250, 240))
            draw.text((sign_x + pad - left, sign_y + pad), text, fill=(10, 10, 10), font=font)
        yield np.asarray(image)


def _background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Sky over ground with a soft random texture."""
    rows = np.linspace(0, 1, height)[:, None, None]
    sky = np.array([150.0, 185.0, 220.0]) * (1 - rows) + np.array([215.0, 225.0, 230.0]) * rows
    ground = np.array([96.0, 120.0, 84.0])
    picture = np.where(rows < 0.55, sky, ground) * np.ones((1, width, 1))
    coarse = Image.fromarray(rng.integers(0, 255, (height // 12 + 1, width // 12 + 1), dtype=np.uint8))
    texture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 255 - 0.5
    picture += texture[..., None] * np.where(rows < 0.55, 14.0, 40.0)
    return picture.clip(0, 255).astype(np.uint8)
