"""Clips with their labels, many at a time, to be learned from in batches.

Searching costs a GPU about the same for ten clips as for hundreds, since each pick is a few small operations; so a pool
of clips is searched at once and then cut into batches.

Shapes: B clips of a pool, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...gaze.autogaze.model import AutoGaze
from ...gaze.ratio import patches_per_frame
from ..config import SearchConfig
from ..objective import Batch, full_precision, search_online
from ..search.greedy import SearchResult, follow_mosaic
from ..tasks.mosaic_task import MosaicTask
from .augment import TakeConfig, TakeSource

FEWEST = 0.015  # share of the patches of a frame that a budget has at least
USUAL = 0.18  # and at most, in four pools of five; in the others what the search allows
FIRST = 4.0  # times as many patches, at most, has the first frame of a clip


@dataclass(frozen=True)
class Pool:
    """seen: (B, T, 3, S, S) uint8; found: labels of all of them, on the way that a search or the model itself took."""

    seen: torch.Tensor
    found: SearchResult

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """All clips once, in a random order; what does not fill a batch is left out."""
        entries, order = self.found.entries(), torch.from_numpy(rng.permutation(len(self.seen)))
        for rows in order[: len(order) // size * size].split(size):
            found = self.found.rows(rows, entries)
            yield Batch(self.seen[rows.to(self.seen.device)], [0] * size, found=found)


@dataclass(frozen=True)
class PoolConfig:
    """clips: of a pool, each of `frames` frames. take: of which the clips are cut, `frames` at a time. own: share of
    the clips on which the labels follow what the model itself selects."""

    clips: int
    frames: int
    take: TakeConfig
    own: float = 0.0


class PoolSource:
    def __init__(self, takes: TakeSource, gaze: AutoGaze, task: MosaicTask, search: SearchConfig) -> None:
        self.takes, self.gaze, self.task, self.search = takes, gaze, task, search

    @property
    def rng(self) -> np.random.Generator:
        return self.takes.rng

    @torch.no_grad()
    def draw(self, settings: PoolConfig) -> list[Pool]:
        """One pool, or two: of clips that were searched and of those that the model went through itself."""
        frames, per_take = settings.frames, max(settings.take.frames // settings.frames, 1)
        shown, seen = self.takes.draw(math.ceil(settings.clips / per_take), settings.take)

        def cut(takes: torch.Tensor) -> torch.Tensor:
            parts = takes[:, : per_take * frames].unflatten(1, (per_take, frames))
            return parts.flatten(0, 1)[: settings.clips]

        shown, seen = cut(shown), cut(seen)
        own = round(settings.own * len(seen))
        pools = []
        if own:
            pools.append(self._follow(shown[:own], seen[:own]))
        if own < len(seen):
            pools.append(self._search(shown[own:], seen[own:]))
        return pools

    def _budgets(self, clips: int, frames: int) -> torch.Tensor:
        """(clips, frames) shares of a frame's patches. Whoever has too few for what moves must know what to leave, so
        half of the clips have budgets of their own, log-uniform, and the first frame often more."""
        most = min(self.search.max_patches / self.task.grid.size, 1.0)
        if self.rng.random() < 0.8:  # few long ones: a batch costs what its longest frame does
            most = min(most, USUAL)
        own = np.exp(self.rng.uniform(np.log(min(FEWEST, most)), np.log(most), (clips, 1)))
        shares = np.where(self.rng.random((clips, 1)) < 0.5, own, most).repeat(frames, axis=1)
        shares[:, :1] *= np.exp(self.rng.uniform(0, np.log(FIRST), (clips, 1)))
        return torch.from_numpy(shares.clip(max=most).astype(np.float32))

    def _search(self, shown: torch.Tensor, seen: torch.Tensor) -> Pool:
        budgets = patches_per_frame(self._budgets(*seen.shape[:2]), self.task.grid.size, *seen.shape[:2])
        with full_precision(seen):
            seeds = self.rng.integers(2**63, size=len(seen)).tolist()
            found = search_online(
                self.task,
                self._normalize(seen),
                seeds,
                self.search,
                reference=self._normalize(shown),
                budgets=budgets,
            )
        return Pool(seen, found)

    def _follow(self, shown: torch.Tensor, seen: torch.Tensor) -> Pool:
        """Each clip is gone through to a loss of its own or to the end of its budgets; a quarter of them by drawing
        from what the model would do. No more: the heads of a step do not see what those before them drew, so that
        their labels would be noise."""
        low, high = np.log(self.search.target)
        budgets, walker, pools = self._budgets(*seen.shape[:2]), self._walker(seen.device), []
        with full_precision(seen):
            certain = -(-3 * len(seen) // 4)
            for number, rows in enumerate(torch.arange(len(seen)).split([certain, len(seen) - certain])):
                if not len(rows):
                    continue
                drawn = np.exp(self.rng.uniform(low, high, (len(rows), 1)))
                drawn = np.where(self.rng.random((len(rows), 1)) < 0.5, drawn, 0.0)
                losses = torch.tensor(drawn, dtype=torch.float32)
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                info = walker.generate(
                    self.gaze.processor.prepare(seen[part].float() / 255),
                    budgets[part],
                    losses,
                    do_sample=number == 1,
                    capture="off",
                    reward_guidance=0,
                )
                pools.append(
                    follow_mosaic(self.task, self._normalize(seen[part]), info, reference=self._normalize(shown[part]))
                )
        return Pool(seen, join(pools))

    def _walker(self, device: torch.device) -> AutoGaze:
        """The model as it is now; on a GPU in half precision, in which it gazes many times as fast."""
        walker = AutoGaze(self.gaze.config, self.gaze.processor).eval().to(device)
        walker.load_state_dict(self.gaze.state_dict())
        return walker.to(torch.bfloat16) if device.type == "cuda" else walker

    def _normalize(self, frames: torch.Tensor) -> torch.Tensor:
        return self.task.normalize(frames.float() / 255)


def join(parts: list[SearchResult]) -> SearchResult:
    """The rows of several results in one, padded to the longest frames."""
    if len(parts) == 1:
        return parts[0]
    counts = [max(each) for each in zip(*(part.counts for part in parts), strict=True)]

    def stretched(part: SearchResult, values: torch.Tensor, padding: float | None) -> torch.Tensor:
        frames = []
        for piece, count in zip(values.split(part.counts, dim=1), counts, strict=True):
            missing = count - piece.shape[1]
            last = piece[:, -1:] if padding is None else torch.full_like(piece[:, -1:], padding)
            frames.append(torch.cat([piece, last.expand(-1, missing, *piece.shape[2:])], dim=1))
        return torch.cat(frames, dim=1)

    def gains(part: SearchResult) -> torch.Tensor:
        assert part.gains is not None
        return stretched(part, part.gains, 0.0)

    def together(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return SearchResult(
        torch.cat([stretched(part, part.ids, -1) for part in parts]),
        torch.cat([stretched(part, part.losses, None) for part in parts]),
        counts,
        torch.cat([gains(part) for part in parts]),
        together("errors"),
        together("floors"),
    )
