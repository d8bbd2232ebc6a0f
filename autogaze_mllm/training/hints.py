"""Help for young models, in training only; the gaze model itself gains no parameters.

Next-token prediction alone teaches a new model the usual order of patches at once, and to look at the video only much
later: where to look shows in the loss only after attention already points there. Two hints close the gap.

- What a patch is worth: a linear head predicts, from the state of every vision token in the middle of the decoder, how
  wrong the picture is at its place, as earlier frames left it and as the patches of each scale would show it. From
  these numbers every gain follows.
- Where to look: in the last layer, the attention that a readout pays to the frame's vision tokens should be shared out
  like the label's probabilities over the places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..gaze.autogaze.decoder import Attention, DecoderLayer, rotate
from ..gaze.autogaze.model import AutoGaze
from ..gaze.grid import PatchGrid
from .search.greedy import SearchResult


@dataclass(frozen=True)
class Hints:
    """What was off, each a number: the worth of patches (squared, logarithmic scale), the attention (cross-entropy
    above the least possible)."""

    worth: torch.Tensor
    attention: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.worth + self.attention


class AuxiliaryHead(nn.Module):
    """Used as a context around `gaze.score`, it keeps the states that it needs."""

    def __init__(self, gaze: AutoGaze, grid: PatchGrid, floor: float) -> None:
        super().__init__()
        config = gaze.config
        self.readout = nn.Linear(config.decoder.hidden_size, 1 + len(grid.scales))
        self.floor, self.prompt, self.step = floor, config.num_prompt_tokens, config.heads_per_step
        self.side, self.cells = config.input_img_size // config.encoder.kernel_size, grid.cells[-1]
        layers = gaze.gazing_model.gaze_decoder.model.layers
        middle, last = layers[(len(layers) - 1) // 2], layers[-1]
        assert isinstance(last, DecoderLayer)
        self._layers = (middle, last.self_attn)  # in a tuple: parts of the gaze model, not of this one
        self._states: torch.Tensor | None = None
        self._attended: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._handles: list[Any] = []
        self.shares: torch.Tensor
        self.register_buffer("shares", token_shares(grid, self.side), persistent=False)

    def __enter__(self) -> AuxiliaryHead:
        def keep_states(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            self._states = output

        def keep_attended(_: nn.Module, given: tuple[Any, ...]) -> None:
            self._attended = given[:3]

        middle, attention = self._layers
        self._handles = [
            middle.register_forward_hook(keep_states),
            attention.register_forward_pre_hook(keep_attended),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def measure(self, found: SearchResult, targets: torch.Tensor) -> Hints:
        """After `gaze.score` of `found` with `targets` (B, n, N)."""
        assert self._states is not None and self._attended is not None and found.errors is not None
        starts, start = [], 0
        for count in found.counts:
            starts.append(start)
            start += self.prompt + count
        worth = self._worth(self._states, found.errors, starts)
        attention = self._pointing(*self._attended, found, targets, starts)
        self._states = self._attended = None
        return Hints(worth, attention)

    def _worth(self, states: torch.Tensor, errors: torch.Tensor, starts: list[int]) -> torch.Tensor:
        """states: (B, S, C); errors: (B, T, maps, n) of every finest patch."""
        tokens = torch.stack([states[:, start : start + self.prompt] for start in starts], dim=1)
        predicted = self.readout(tokens.float())  # (B, T, P, maps)
        wanted = errors.unflatten(-1, self.cells).flatten(0, 1)
        if self.cells != (self.side, self.side):
            wanted = F.interpolate(wanted, (self.side, self.side), mode="bilinear")
        wanted = (1 + wanted / self.floor).log().flatten(2).transpose(1, 2).unflatten(0, errors.shape[:2])
        return F.mse_loss(predicted, wanted)

    def _pointing(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        found: SearchResult,
        targets: torch.Tensor,
        starts: list[int],
    ) -> torch.Tensor:
        """x: (B, S, C) what the last layer's attention gets; cos, sin: (B, 1, S, d / 2). One term for each readout of a
        frame, those of rows that have no entry left are left out."""
        attention = self._layers[1]
        assert isinstance(attention, Attention)
        total, terms, first = x.new_zeros((), dtype=torch.float32), 0.0, 0
        for start, count in zip(starts, found.counts, strict=True):
            tokens = slice(start, start + self.prompt)
            slots = start + self.prompt - 1 + torch.arange(0, count, self.step, device=x.device)
            keys = _heads(attention.k_proj(x[:, tokens]), attention.head_size)
            keys = rotate(keys, cos[:, :, tokens], sin[:, :, tokens])
            queries = _heads(attention.q_proj(x[:, slots]), attention.head_size)
            queries = rotate(queries, cos[:, :, slots], sin[:, :, slots])
            keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
            scores = (queries @ keys.transpose(2, 3)).float() / attention.head_size**0.5  # (B, H, readouts, P)
            wanted, real = self._wanted(found, targets, first, count)
            least = torch.special.entr(wanted).sum(dim=-1)
            crossed = -(wanted[:, None] * scores.log_softmax(dim=-1)).sum(dim=-1).mean(dim=1)
            total = total + ((crossed - least) * real).sum()
            terms += float(real.sum())
            first += count
        return total / max(terms, 1.0)

    def _wanted(
        self, found: SearchResult, targets: torch.Tensor, first: int, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (B, readouts, P) the label's probabilities over the places, mean over the entries that each readout
        decides, and (B, readouts) 1 where there is one."""
        real = (found.ids[:, first : first + count] >= 0).float()
        shares = (targets[:, first : first + count] @ self.shares) * real[..., None]
        padding = -count % self.step
        shares = F.pad(shares, (0, 0, 0, padding)).unflatten(1, (-1, self.step)).sum(dim=2)
        entries = F.pad(real, (0, padding)).unflatten(1, (-1, self.step)).sum(dim=2)
        return shares / shares.sum(dim=-1, keepdim=True).clamp(min=1e-9), (entries > 0).float()


def _heads(x: torch.Tensor, size: int) -> torch.Tensor:
    """(B, q, heads * size) -> (B, heads, q, size)"""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def token_shares(grid: PatchGrid, side: int) -> torch.Tensor:
    """(N, side * side): the share of each prompt token's cell in each patch, rows sum to 1."""
    parts = []
    for rows, columns in grid.cells:
        axes = []
        for cells in (rows, columns):
            edges, cuts = torch.arange(cells + 1) / cells, torch.arange(side + 1) / side
            low = torch.maximum(edges[:-1, None], cuts[None, :-1])
            high = torch.minimum(edges[1:, None], cuts[None, 1:])
            axes.append((high - low).clamp(min=0))
        parts.append(torch.kron(axes[0], axes[1]))
    shares = torch.cat(parts)
    return shares / shares.sum(dim=1, keepdim=True)
