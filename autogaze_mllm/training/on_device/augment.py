"""Clips cut out of packed ones, and what a camera makes of them: all of it on the device.

A take is a run of frames at some speed, forwards or backwards, of some part of the picture, held still or shaken, at
some exposure; now and then it is cut in the middle. That is what is to be shown. What the gaze model sees of it may be
worse: stored by a codec, with sensor noise, quantised.

Shapes: B takes, n frames, S pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..data.degrade import add_noise, quantise
from .pack import PackedClip

CHUNK = 32  # takes that are worked on at once


@dataclass(frozen=True)
class TakeConfig:
    """frames, side: of a take. strides: smallest and largest distance of its frames, drawn log-uniformly. The others
    are probabilities: whole: the whole picture, and not a part of it; generated: a generated clip; clean: it is seen as
    it is."""

    frames: int = 16
    strides: tuple[float, float] = (1.0, 3.0)
    side: int = 224
    whole: float = 0.3
    generated: float = 0.2
    clean: float = 0.4
    cut: float = 0.08
    shake: float = 0.3
    hold: float = 0.05
    dark: float = 0.12


class TakeSource:
    """Endless takes; the same for the same seed, on the same kind of device."""

    def __init__(
        self, real: Sequence[PackedClip], generated: Sequence[PackedClip], device: torch.device, seed: int = 0
    ) -> None:
        self.real, self.generated, self.device, self.seed = real, generated, device, seed
        self.generator = torch.Generator(device)
        self.restart(0)

    def restart(self, step: int) -> None:
        """Other takes than from the start, for a run that goes on from this step."""
        self.rng = np.random.default_rng([self.seed, step])
        self.generator.manual_seed(self.seed * 1_000_003 + step)

    @torch.no_grad()
    def draw(self, count: int, settings: TakeConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """-> what is to be shown and what is seen of it, both (count, n, 3, S, S) uint8."""
        shape = (count, settings.frames, 3, settings.side, settings.side)
        shown = torch.empty(shape, dtype=torch.uint8, device=self.device)
        seen = torch.empty_like(shown)
        for start in range(0, count, CHUNK):
            takes = [self._take(settings) for _ in range(min(CHUNK, count - start))]
            rows = slice(start, start + len(takes))
            exposure = self._exposure(len(takes), settings)
            clean = exposure(torch.stack([take[0] for take in takes]))
            shown[rows] = _bytes(clean)
            seen[rows] = shown[rows]
            worse = {number: version for number, (_, version) in enumerate(takes) if version is not None}
            if worse:
                stored = exposure.of(list(worse))(torch.stack(list(worse.values())))
                seen[[start + number for number in worse]] = _bytes(self._disturb(stored))
        return shown, seen

    def _take(self, settings: TakeConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Two versions (n, 3, S, S) in [0, 255], the second one None if the take is seen as it is."""
        rng, frames = self.rng, settings.frames
        clean = rng.random() < settings.clean
        lengths = [frames]
        if frames > 1 and rng.random() < settings.cut:
            first = int(rng.integers(1, frames))
            lengths = [first, frames - first]
        parts = [self._segment(length, clean, settings) for length in lengths]
        shown = torch.cat([part[0] for part in parts])
        return shown, None if clean else torch.cat([part[1] for part in parts])

    def _segment(self, length: int, clean: bool, settings: TakeConfig) -> tuple[torch.Tensor, torch.Tensor]:
        rng = self.rng
        pool = self.generated if self.generated and rng.random() < settings.generated else self.real
        clip = pool[int(rng.integers(len(pool)))]
        low, high = settings.strides
        span = min(math.exp(rng.uniform(math.log(low), math.log(high))) * (length - 1), len(clip) - 1)
        begin = rng.uniform(0, len(clip) - 1 - span)
        numbers = np.linspace(begin, begin + span, length).round().astype(int)
        if rng.random() < settings.hold:
            numbers[:] = numbers[0]
        if rng.random() < 0.25:
            numbers = numbers[::-1].copy()
        view = self._view(length, clip, settings).to(self.device)
        versions = [clip.clean]
        if not clean:
            kinds = [clip.clean, *clip.stored]
            versions.append(kinds[int(rng.integers(len(kinds)))])
        index = torch.from_numpy(numbers).to(self.device)
        grid = F.affine_grid(view, [length, 3, 2 * settings.side, 2 * settings.side], align_corners=False)
        result = []
        for frames in versions:
            # Twice as fine and then averaged: a whole picture is wider than the take.
            fine = F.grid_sample(frames[index].float(), grid, padding_mode="reflection", align_corners=False)
            result.append(F.avg_pool2d(fine, 2))
        return result[0], result[-1]

    def _view(self, length: int, clip: PackedClip, settings: TakeConfig) -> torch.Tensor:
        """(length, 2, 3) what part of the clip's frames is seen, as `affine_grid` takes it."""
        rng = self.rng
        high = wide = 1.0
        if rng.random() >= settings.whole:
            area, aspect = rng.uniform(0.3, 1), math.exp(rng.uniform(-math.log(4 / 3), math.log(4 / 3)))
            high, wide = min(math.sqrt(area / aspect), 1.0), min(math.sqrt(area * aspect), 1.0)
        x, y = rng.uniform(-1, 1) * (1 - wide), rng.uniform(-1, 1) * (1 - high)
        turn = np.zeros(length)
        moved = np.zeros((2, length))
        if rng.random() < settings.shake:
            strength = math.exp(rng.uniform(math.log(0.002), math.log(0.04)))
            moved = _wander(rng, 2, length) * strength
            turn = _wander(rng, 1, length)[0] * strength * 0.5
            high, wide = high * 0.95, wide * 0.95
        cos, sin = np.cos(turn), np.sin(turn)
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        top = np.stack([wide * cos * mirror, -wide * sin, x + moved[0] * wide], axis=1)
        bottom = np.stack([high * sin * mirror, high * cos, y + moved[1] * high], axis=1)
        return torch.from_numpy(np.stack([top, bottom], axis=1).astype(np.float32))

    def _exposure(self, count: int, settings: TakeConfig) -> Exposure:
        rng = self.rng
        gain = np.exp(rng.normal(0, 0.15, (count, 1, 1)) + rng.normal(0, 0.04, (count, 1, 3)))
        gain = gain * np.where(rng.random((count, 1, 1)) < settings.dark, rng.uniform(0.1, 0.6, (count, 1, 1)), 1.0)
        flicker = np.where(rng.random((count, 1, 1)) < 0.1, 0.03, 0.0)
        gain = gain * np.exp(rng.normal(0, 1, (count, settings.frames, 1)) * flicker)
        gamma = np.exp(rng.normal(0, 0.12, (count, 1, 1)))
        plain = rng.random((count, 1, 1)) < 0.3
        return Exposure(self._tensor(np.where(plain, 1.0, gain)), self._tensor(np.where(plain, 1.0, gamma)))

    def _disturb(self, frames: torch.Tensor) -> torch.Tensor:
        """(b, n, 3, S, S) in [0, 1]: noise for most rows, blocks for some."""
        rng, count = self.rng, len(frames)
        strength = np.exp(rng.uniform(np.log(0.008), np.log(0.12), count)) * (rng.random(count) < 0.65)
        grain, colour = rng.uniform(0, 0.7, count) * (rng.random(count) < 0.5), rng.uniform(0, 1, count)
        frames = add_noise(frames, self._tensor(strength), self._tensor(grain), self._tensor(colour), self.generator)
        coarse = np.exp(rng.uniform(np.log(0.02), np.log(0.25), count)) * (rng.random(count) < 0.25)
        return quantise(frames, self._tensor(coarse))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)


@dataclass(frozen=True)
class Exposure:
    """gain: (B, n or 1, 3) factor of each frame and channel; gamma: (B, 1, 1)."""

    gain: torch.Tensor
    gamma: torch.Tensor

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, n, 3, S, S) in [0, 255] -> [0, 1]"""
        return ((frames / 255) ** self.gamma[..., None, None] * self.gain[..., None, None]).clamp(0, 1)

    def of(self, rows: list[int]) -> Exposure:
        return Exposure(self.gain[rows], self.gamma[rows])


def _wander(rng: np.random.Generator, kinds: int, length: int) -> np.ndarray:
    """(kinds, length) a hand that does not hold still: steps that partly come back, standard deviation about 1."""
    steps = rng.normal(0, 1, (kinds, length))
    for number in range(1, length):
        steps[:, number] = 0.7 * steps[:, number - 1] + 0.7 * steps[:, number]
    return steps


def _bytes(frames: torch.Tensor) -> torch.Tensor:
    return (frames * 255).round().byte()
