"""TokenMap: which picture, time and place every visual token of a gazed video stands for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from ..common.errors import InputError
from .gazed_video import GazedVideo
from .grid import PatchGrid


@dataclass(frozen=True)
class TokenMap:
    """What an LLM has to know of a gazed video besides the features of its n kept patches.

    counts, seconds: of each picture (a frame with all its tiles, or a thumbnail), in the order of the tokens.
    positions: (n,) index on `grid` of each kept patch, in that order; tile: (n,) the tile that it lies in, row by row.
    tubelet, interval: as in GazedVideo.
    """

    counts: list[int]
    seconds: list[float]
    positions: torch.Tensor
    tile: torch.Tensor
    grid: PatchGrid
    tiles: tuple[int, int] = (1, 1)
    thumbnails: int = 0
    tubelet: int = 1
    interval: float = 0.0

    @classmethod
    def of(cls, gazed: GazedVideo, raster: bool, across_tiles: bool = False) -> TokenMap:
        """raster, across_tiles: as for `GazedVideo.token_order`."""
        gazed = gazed.without_patches()
        pictures, picture = gazed.pictures.unique(return_inverse=True)
        seconds = torch.full((len(pictures),), torch.inf, dtype=torch.float64)
        seconds.scatter_reduce_(0, picture, gazed.timestamps.double(), "amin")
        order = gazed.token_order(raster, across_tiles)
        return cls(
            gazed.picture_counts(),
            seconds.tolist(),
            gazed.positions[order],
            torch.repeat_interleave(gazed.tile_numbers(), gazed.frame_counts)[order],
            gazed.grid,
            gazed.tiles,
            gazed.thumbnails,
            gazed.tubelet,
            gazed.interval,
        )

    def kept(self, mask: torch.Tensor) -> TokenMap:
        """What is left of it where only some tokens (n,) are."""
        mask = mask.cpu()
        counts = [int(part.sum()) for part in mask.split(self.counts)]
        return dataclasses.replace(self, counts=counts, positions=self.positions[mask], tile=self.tile[mask])

    def __len__(self) -> int:
        return len(self.positions)

    def facts(self) -> dict[str, Any]:
        """All but the tensors, as json has it."""
        grid = {"scales": self.grid.scales, "patch": self.grid.patch}
        names = ("counts", "seconds", "tiles", "thumbnails", "tubelet", "interval")
        return {name: getattr(self, name) for name in names} | {"grid": grid}

    @classmethod
    def from_facts(cls, facts: dict[str, Any], positions: torch.Tensor, tile: torch.Tensor) -> TokenMap:
        """What `facts` said. Raises InputError where that does not fit together."""
        grid = PatchGrid(tuple((int(h), int(w)) for h, w in facts["grid"]["scales"]), int(facts["grid"]["patch"]))
        counts, seconds = [int(count) for count in facts["counts"]], [float(time) for time in facts["seconds"]]
        if not sum(counts) == len(positions) == len(tile) or len(counts) != len(seconds):
            raise InputError("the map of the visual tokens does not fit them")
        columns, rows = facts["tiles"]
        tubelet, interval = int(facts["tubelet"]), float(facts["interval"])
        tiles = (int(columns), int(rows))
        return cls(counts, seconds, positions, tile, grid, tiles, int(facts["thumbnails"]), tubelet, interval)
