"""What gazing carries from one call to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..encoder import ConvState


@dataclass(frozen=True)
class GazeState:
    """Everything a later call needs to go on where this one stopped. Never written to after it was made.

    keys, values: per layer (B, G, L, d), keys after rotation. lengths: (B,) slots in use of each row.
    unfed: (B, K) ids chosen last and not in the cache yet, real ones first; unfed_counts: (B,) how many are real.
    conv: per trunk block, its last input frames (B, D, history, g, g). canvas: (B, 3, S, S) the picture that guided
    decoding has painted so far; None where it was not guided.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    lengths: torch.Tensor
    unfed: torch.Tensor
    unfed_counts: torch.Tensor
    conv: ConvState
    canvas: torch.Tensor | None = None

    def rows(self, rows: slice) -> GazeState:
        """The state of some of the rows."""
        keys, values, conv = (tuple(x[rows] for x in parts) for parts in (self.keys, self.values, self.conv))
        canvas = None if self.canvas is None else self.canvas[rows]
        return GazeState(keys, values, self.lengths[rows], self.unfed[rows], self.unfed_counts[rows], conv, canvas)

    def to(self, device: torch.device | str) -> GazeState:
        """The same on `device`."""
        keys, values, conv = (tuple(x.to(device) for x in parts) for parts in (self.keys, self.values, self.conv))
        whole = (self.lengths.to(device), self.unfed.to(device), self.unfed_counts.to(device))
        canvas = None if self.canvas is None else self.canvas.to(device)
        return GazeState(keys, values, *whole, conv, canvas)
