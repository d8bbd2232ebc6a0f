"""Backgrounds: textures in muted colours, in families; train and test have different ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

FAMILIES: dict[str, tuple[str, ...]] = {"train": ("clouds", "stripes", "bricks"), "test": ("waves", "cells", "weave")}
DARKEST, LIGHTEST = 30, 225  # noise is added to bytes and must not wrap around


def background(family: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A texture (height, width, 3) uint8 in [DARKEST, LIGHTEST]."""
    half = (-(-height // 2), -(-width // 2))  # drawn at half the size: fine detail is what the signs have
    y, x = np.mgrid[0 : half[0], 0 : half[1]].astype(np.float32)
    relief = _FAMILIES[family](x, y, rng)
    first, second = rng.uniform(60, 190, 3), rng.uniform(-45, 45, 3)
    shade = _noise(half, 60, rng)[..., None] * rng.uniform(5, 25, 3).astype(np.float32)
    picture = first.astype(np.float32) + second.astype(np.float32) * relief[..., None] + shade
    image = Image.fromarray(picture.clip(DARKEST, LIGHTEST).astype(np.uint8))
    resized = np.asarray(image.resize((2 * half[1], 2 * half[0]), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(resized[:height, :width])


def _noise(shape: tuple[int, int], period: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (h, w) in about [-1, 1], one free value per `period` pixels."""
    coarse = rng.random((shape[0] // period + 3, shape[1] // period + 3), dtype=np.float32) * 2 - 1
    return np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _clouds(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    octaves = {48: 0.5, 20: 0.3, 8: 0.2, 4: 0.15}
    return np.sum([_noise(x.shape, period, rng) * weight for period, weight in octaves.items()], axis=0)


def _stripes(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    return 0.5 * np.sin(along * (2 * np.pi / rng.uniform(10, 50))) + 0.2 * _noise(x.shape, 6, rng)


def _bricks(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    tall = int(rng.integers(10, 24))
    row = y // tall
    column = (x + (row % 2) * tall) // (2 * tall)
    tone = rng.random(4096, dtype=np.float32)[(row * 61 + column * 17).astype(np.int64) % 4096]
    joint = (y % tall < 1) | ((x + (row % 2) * tall) % (2 * tall) < 1)
    return np.where(joint, 1.0, tone - 0.5) + 0.15 * _noise(x.shape, 4, rng)


def _waves(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    bend = 20 * _noise(x.shape, 90, rng)
    return 0.5 * np.sin((y + bend) * (2 * np.pi / rng.uniform(12, 40))) + 0.2 * _noise(x.shape, 5, rng)


def _cells(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = int(rng.integers(14, 34))
    cell = ((y // side) * 89 + (x // side) * 31).astype(np.int64) % 4096
    centre = rng.uniform(0.25, 0.75, (4096, 2)).astype(np.float32)[cell] * side
    distance = np.hypot(x % side - centre[..., 0], y % side - centre[..., 1]) / side
    return 1.2 * (0.5 - distance) + 0.15 * _noise(x.shape, 5, rng)


def _weave(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    period = rng.uniform(10, 30)
    over = np.sin(x * 2 * np.pi / period) * np.sin(y * 2 * np.pi / period)
    return 0.5 * over + 0.25 * _noise(x.shape, 7, rng)


_FAMILIES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "clouds": _clouds,
    "stripes": _stripes,
    "bricks": _bricks,
    "waves": _waves,
    "cells": _cells,
    "weave": _weave,
}
