"""Greedy search for any reconstruction task: every patch that is left is tried, in batches, and the best one taken.

For a frame of N patches and k picks this rebuilds the frame about N * k times. The mosaic task does not need it: its
gains have a closed form (`greedy.search_mosaic`).
"""

from __future__ import annotations

import torch

from ...gaze.pictures.gains import TIE, best_patch
from ..tasks.base import ReconstructionTask
from .greedy import SearchResult


@torch.no_grad()
def search_by_candidates(
    task: ReconstructionTask, video: torch.Tensor, targets: torch.Tensor, budgets: torch.Tensor, batch: int = 64
) -> SearchResult:
    """video: (B, T, 3, H, W) in the task's values; targets, budgets: (B, T) loss to reach and patches at most.

    batch: candidates rebuilt at a time. Rows are searched one after the other. Every frame has at least one entry; a
    frame also ends when no patch lowers its loss.
    """
    rows = [
        _search_row(task, clip, target, budget, batch)
        for clip, target, budget in zip(video, targets, budgets, strict=True)
    ]
    counts = [max(len(row[t]) for row in rows) for t in range(video.shape[1])]
    ids, losses = [], []
    for row in rows:
        padded = [
            (*frame, *[(-1, frame[-1][1])] * (count - len(frame))) for frame, count in zip(row, counts, strict=True)
        ]
        ids.append([pick for frame in padded for pick, _ in frame])
        losses.append([loss for frame in padded for _, loss in frame])
    return SearchResult(torch.tensor(ids, device=video.device), torch.tensor(losses, device=video.device), counts)


def _search_row(
    task: ReconstructionTask, clip: torch.Tensor, targets: torch.Tensor, budgets: torch.Tensor, batch: int
) -> list[list[tuple[int, float]]]:
    """Per frame, (pick, loss after it)."""
    frames: list[list[tuple[int, float]]] = []
    for t in range(len(clip)):
        picks: list[tuple[int, float]] = []
        before = float("inf")
        earlier = [[pick for pick, _ in frame] for frame in frames]
        while len(picks) < int(budgets[t]):
            taken = [pick for pick, _ in picks]
            left = [number for number in range(task.grid.size) if number not in taken]
            losses = torch.cat(
                [
                    _losses(task, clip[: t + 1], earlier, taken, left[start : start + batch])
                    for start in range(0, len(left), batch)
                ]
            )
            # At the first patch there is nothing to compare with, so its gain is counted from the worst one.
            start = before if picks else float(losses.max())
            gain, first = best_patch(start - losses[None])
            best, loss = int(first), float(losses[first])
            if picks and float(gain) <= TIE:
                break
            picks.append((left[best], loss))
            before = loss
            if loss <= float(targets[t]):
                break
        frames.append(picks)
    return frames


def _losses(
    task: ReconstructionTask, clip: torch.Tensor, earlier: list[list[int]], taken: list[int], candidates: list[int]
) -> torch.Tensor:
    """Loss of the clip's last frame with each candidate added, (candidates,)."""
    size, last = task.grid.size, len(clip) - 1
    fixed = [pick + frame * size for frame, picks in enumerate([*earlier, taken]) for pick in picks]
    rows = [[*fixed, candidate + last * size] for candidate in candidates]
    positions = torch.tensor(rows, device=clip.device)
    counts = [len(picks) for picks in earlier] + [len(taken) + 1]
    info = {
        "gazing_pos": positions,
        "if_padded_gazing": torch.zeros_like(positions, dtype=torch.bool),
        "num_gazing_each_frame": torch.tensor(counts, device=clip.device),
    }
    return task(clip[None].expand(len(rows), -1, -1, -1, -1), info, frames=[last]).frame_losses[:, 0]
