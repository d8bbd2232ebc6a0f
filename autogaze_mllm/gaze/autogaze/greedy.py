"""`greedy`: the search that the gaze model learns from, as a selector without training.

The patch that lowers the error of the picture most comes next, until the loss that was asked for is reached, the budget
is spent, or no patch is worth its place. It measures what the gaze model predicts, in the same unit, on the same
pictures (`do_denoise`), and on any grid. Where a gain is what ends a frame, gains count what can be seen.

Shapes: B clips, T frames, N patches of a frame.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ...common.errors import InputError
from ...common.storage.json_text import Fields
from ..grid import PatchGrid
from ..pictures.gains import LOSS, TIE, TOLERANCE, Counted, MosaicFrame, best_patch, mosaic_tables
from ..pictures.mosaic import BLANK
from ..ratio import Ratio, patches_per_frame
from ..selection import GazingInfo, build_info, in_raster_order
from ..selectors.base import Selector
from ..selectors.noise import METER
from .config import MOSAIC_TASK
from .processor import AutoGazeImageProcessor


class GreedySelector(Selector):
    """`loss`: mean absolute error of the picture, in the values of the gaze model: 1 is about a ninth of the way from
    black to white."""

    name = "greedy"
    default_loss = 0.2
    loss_unit = MOSAIC_TASK
    thread_safe = True

    def __init__(self, least_gain: float | None = None) -> None:
        """least_gain: a frame also ends once no patch would bring more that can be seen (None: no such rule)."""
        if not 0 <= (least_gain or 0.0) < math.inf:
            raise InputError(f"greedy: least_gain must be 0 or more and finite, got {least_gain}")
        self.least_gain = least_gain
        self.processor = AutoGazeImageProcessor(do_denoise=True)

    def identity(self) -> dict[str, Any]:
        ending = None if self.least_gain is None else {"least_gain": self.least_gain, "tolerance": TOLERANCE}
        return {"name": self.name, "denoised": METER, "ending": ending}

    def ending_at(self, gain: float) -> Selector:
        return GreedySelector(gain)

    def store(self, folder: Path) -> dict[str, Any]:
        return {**super().store(folder), "least_gain": self.least_gain}

    @classmethod
    def restored(cls, entry: dict[str, Any]) -> GreedySelector:
        return cls(Fields(entry, "gaze").get("least_gain", float | None, None))

    @torch.no_grad()
    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """frames (B, T, 3, H, W) in [0, 1] at the grid's largest scale; loss None: only the budget ends a frame."""
        video = self.processor.prepare(frames.float())
        budgets = patches_per_frame(ratio, grid.size, *frames.shape[:2]).to(frames.device)
        tables = mosaic_tables(grid, video.device)
        canvas = self.processor.normalize(torch.full_like(video[:, 0], BLANK))
        measure: Counted = LOSS if self.least_gain is None else "visible"
        ids: list[torch.Tensor] = []
        counts: list[int] = []
        for t in range(video.shape[1]):
            pictures = tables.painter.pictures(video[:, t])
            frame = MosaicFrame(tables, *tables.errors(video[:, t], canvas, pictures, measure))
            whole = frame
            if loss and measure != LOSS:
                whole = MosaicFrame(tables, *tables.errors(video[:, t], canvas, pictures))
            found = _searched(frame, whole, budgets[:, t], loss or 0.0, max(self.least_gain or 0.0, TIE))
            canvas = frame.painted_on(canvas, pictures)
            ids.append(found)
            counts.append(found.shape[1])
        chosen = torch.cat(ids, dim=1)
        info = build_info(
            chosen.clamp(min=0), chosen >= 0, counts, grid, pad_id=-1, has_task_loss_requirement=loss is not None
        )
        return info if self.least_gain is None else in_raster_order(info, grid)


def _searched(frame: MosaicFrame, whole: MosaicFrame, budgets: torch.Tensor, loss: float, least: float) -> torch.Tensor:
    """frame: as gains count it, whole: as the loss does; budgets: (B,) -> ids (B, n) in the order in which they were
    found, -1 where a clip has fewer; one at least."""
    ids: list[torch.Tensor] = []
    active = torch.ones_like(budgets, dtype=torch.bool)
    for number in range(int(budgets.max())):
        best, pick = best_patch(frame.gains())
        if number:
            active = active & (best > least) & (whole.loss > loss) & (number < budgets)
            if not bool(active.any()):
                break
        for picture in dict.fromkeys((frame, whole)):
            picture.paint(pick, active)
        ids.append(torch.where(active, pick, -1))
    return torch.stack(ids, dim=1)
