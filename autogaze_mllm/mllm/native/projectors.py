"""Projectors of the VILA family: neighbouring tower tokens are joined on their channels, then a small MLP.

A dense picture joins the k x k windows of its grid. Gazed tokens have no grid: k * k tokens that follow each other in
gaze order are joined instead, and the last token of a picture is repeated until its count is a multiple of k * k.

Shapes: F pictures, N tokens of the tower, C its channels, D channels of the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ...common.errors import InputError


@dataclass(frozen=True)
class ProjectorKind:
    """layers: what stands at each index of the published module (m joins tokens, n LayerNorm, l Linear, g GELU).

    window: k. by_columns: joined windows follow each other down the columns of the picture instead of along its rows.
    """

    layers: str
    window: int = 1
    by_columns: bool = False

    @property
    def linears(self) -> list[int]:
        return [index for index, layer in enumerate(self.layers) if layer == "l"]


KINDS = {
    "linear": ProjectorKind("l"),
    "mlp2x_gelu": ProjectorKind("lgl"),
    # VILA-1.5 and LongVILA were trained with code that put the windows in column order; the _fix types mended that.
    "mlp_downsample": ProjectorKind("mnlgl", window=2, by_columns=True),
    "mlp_downsample_2x2_fix": ProjectorKind("mnlgl", window=2),
    "mlp_downsample_3x3_fix": ProjectorKind("mnlgnlgl", window=3),
}


class Projector(nn.Module):
    """layers: what follows the joining. merge: tower tokens that make one token of the LLM.

    copies: how often a token's channels are repeated before they are joined (models of several image scales show a
    video frame at one of them and repeat it).
    """

    def __init__(self, kind: ProjectorKind, layers: nn.Module, merge: int, copies: int) -> None:
        super().__init__()
        self.kind, self.merge, self.copies = kind, merge, copies
        self.layers = layers

    def count(self, kept: int) -> int:
        """Tokens of the LLM for a picture with this many tower tokens."""
        return -(-kept // self.merge)

    def forward(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """features (N, C) of pictures one after the other, in gaze order; counts of each -> (sum of count(n), D)."""
        kept = torch.tensor(counts, device=features.device)
        full = -(-kept // self.merge) * self.merge
        picture = torch.repeat_interleave(torch.arange(len(counts), device=features.device), full)
        offset = torch.arange(len(picture), device=features.device) - (full.cumsum(0) - full)[picture]
        rows = (kept.cumsum(0) - kept)[picture] + torch.minimum(offset, kept[picture] - 1)
        return self.layers(self._widened(features[rows]).reshape(-1, self.merge * self.copies * features.shape[1]))

    def dense(self, features: torch.Tensor) -> torch.Tensor:
        """features (F, n, C) of whole square pictures, row by row -> (F, dense_count(n), D), windows joined.

        Sides that are no multiple of k are filled up with zeros, below and on the right.
        """
        k, side = self.kind.window, round(features.shape[1] ** 0.5)
        grid = self._widened(features).unflatten(1, (side, side))
        extra = -side % k
        grid = F.pad(grid, (0, 0, 0, extra, 0, extra))
        windows = grid.unflatten(2, (-1, k)).unflatten(1, (-1, k)).transpose(2, 3)  # (F, rows, columns, k, k, C)
        if self.kind.by_columns:
            windows = windows.transpose(1, 2)
        return self.layers(windows.flatten(3).flatten(1, 2))

    def dense_count(self, n: int) -> int:
        """Tokens of the LLM for a whole square picture of n tower tokens."""
        return (-(-round(n**0.5) // self.kind.window)) ** 2

    def _widened(self, features: torch.Tensor) -> torch.Tensor:
        return features.repeat(*[1] * (features.dim() - 1), self.copies)


def build_projector(
    kind: ProjectorKind, shapes: Mapping[str, tuple[int, ...]], channels: int, width: int, source: str, merge: int = 0
) -> Projector:
    """An empty projector; its sizes are those of the stored weights, or the usual ones where they are missing.

    shapes: of the stored tensors, by key from "layers." on. channels, width: C and D. merge: tokens joined; 0: as many
    as the first layer has room for.
    """
    indexed = len(kind.layers) > 1

    def stored(index: int, fallback: int, side: int = 0) -> int:
        shape = shapes.get(f"layers.{index}.weight" if indexed else "layers.weight", ())
        return shape[side] if len(shape) > side else fallback

    first = kind.layers.index("n") if "n" in kind.layers else kind.linears[0]
    given = stored(first, (merge or kind.window**2) * channels, side=0 if "n" in kind.layers else 1)
    merge = merge or given // channels
    copies = given // (merge * channels) if merge else 0
    if not copies or copies * merge * channels != given:
        raise InputError(
            f"{source}: the projector takes {given} channels, which is no multiple of the tower's {channels}"
            + (f" times the {merge} tokens that it joins" if merge > 1 else "")
        )
    layers: list[nn.Module] = []
    now = given
    for index, layer in enumerate(kind.layers):
        if layer == "l":
            # With a norm between them, two linear layers narrow down in two steps.
            usual = 3 * copies * channels if "n" in kind.layers[index:] else width
            after = stored(index, usual)
            layers.append(nn.Linear(now, after))
            now = after
        else:
            layers.append(nn.LayerNorm(now) if layer == "n" else nn.GELU() if layer == "g" else nn.Identity())
    if now != width:
        raise InputError(f"{source}: the projector gives {now} channels, the LLM takes {width}")
    return Projector(kind, nn.Sequential(*layers) if indexed else layers[0], merge, copies)
