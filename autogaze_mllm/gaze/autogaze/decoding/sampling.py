"""Which ids the heads of a step choose: the best ones or drawn ones, none twice in a frame.

Shapes: B rows, K heads, V ids (the last one means "end").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ....common.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. The defaults draw from the model's whole distribution at temperature 1.

    The published training code also keeps only the 50 best ids of each head; give `top_k=50` for that.
    """

    temperature: float = 1.0
    top_k: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature must be above 0 and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")

    def shape(self, scores: torch.Tensor) -> torch.Tensor:
        """Temperature and top-k on scores (..., V); ties with the k-th best stay."""
        scores = scores / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            bound = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < bound, -torch.inf)
        return scores

    def draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        """One id per row of (B, V)."""
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(1)


def pick(scores: torch.Tensor, used: torch.Tensor, sampling: Sampling | None, on_host: bool) -> torch.Tensor:
    """One id per head and row (B, K) by scores (B, K, V), none of them in `used` (B, V), which gains the picks.
    on_host: the numbers lie on the host, so that looking at them costs nothing."""
    scores = scores.masked_fill(used[:, None], -torch.inf)
    if sampling is None and on_host:
        return _best_of_each(scores, used)
    if sampling is not None:
        scores = sampling.shape(scores)
    picks = []
    for head in range(scores.shape[1]):
        row = scores[:, head].masked_fill(used, -torch.inf)
        choice = row.argmax(dim=-1) if sampling is None else sampling.draw(_finite_softmax(row))
        used.scatter_(1, choice[:, None], True)
        picks.append(choice)
    return torch.stack(picks, dim=1)


def _best_of_each(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """What the heads of scores (B, K, V) choose one after the other, none what an earlier one has (`used` gains all).

    All heads choose at once; the first of a row that repeats an earlier choice then chooses again, until none does.
    Two or three rounds are usual, but each asks the device for an answer, so this is for the CPU.
    """
    picks = scores.argmax(dim=-1)
    empty = torch.zeros_like(picks, dtype=torch.bool)  # surplus heads of a complete frame, which will be thrown away
    while True:
        repeats = (picks[:, :, None] == picks[:, None]).tril(-1).any(dim=2) & ~empty
        rows = repeats.any(dim=1).nonzero().squeeze(1)
        if not len(rows):
            break
        heads = repeats[rows].to(torch.uint8).argmax(dim=1)
        row_scores = scores[rows, heads]
        earlier = torch.arange(picks.shape[1]) < heads[:, None]
        taken = torch.zeros_like(row_scores, dtype=torch.uint8).scatter_add_(1, picks[rows], earlier.to(torch.uint8))
        row_scores = row_scores.masked_fill(taken > 0, -torch.inf)
        scores[rows, heads] = row_scores
        picks[rows, heads] = row_scores.argmax(dim=-1)
        empty[rows, heads] = (row_scores == -torch.inf).all(dim=-1)
    used.scatter_(1, picks, True)
    return picks


def _finite_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over (B, V). A row with nothing left (its frame is already complete) draws anything."""
    empty = torch.isinf(scores).all(dim=-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=-1)


def real_first(ids: torch.Tensor, end: int) -> torch.Tensor:
    """Moves the real ids of every row (B, K) to the front, in order."""
    order = (ids == end).to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order)


def unfed_first(source: torch.Tensor, waiting: torch.Tensor, room: int) -> torch.Tensor:
    """What a prefill feeds. source (B, room + P, C): ids not fed yet, `waiting` (B,) of each row's count, then P vision
    tokens -> the same without the gap between the two; fewer ids leave padding at a row's end, after all it has."""
    columns, waiting = torch.arange(source.shape[1], device=source.device)[None], waiting[:, None]
    order = (columns + torch.where(columns >= waiting, room - waiting, 0)).clamp(max=source.shape[1] - 1)
    return source.gather(1, order[..., None].expand(-1, -1, source.shape[-1]))
