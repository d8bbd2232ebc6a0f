"""PatchGrid: which patch of a frame an index means.

Three incompatible grids are in circulation for the same 392-pixel tile (1060, 1038 and 778 positions). An index is
therefore never used without the grid it was made for, and `PatchGrid.check_same` turns a mix-up into an error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..common.errors import InputError

Side = int | tuple[int, int]


def parse_scales(scales: str | int | Iterable[int]) -> tuple[int, ...]:
    """`"32+64"`, `64` or any sequence of ints -> sides in pixels, ascending."""
    if isinstance(scales, int):
        parts: list[int] = [scales]
    elif isinstance(scales, str):
        try:
            parts = [int(part) for part in scales.split("+")]
        except ValueError:
            raise InputError(f"scales {scales!r}: expected sides joined by '+', such as 56+112+196+392") from None
    else:
        try:
            parts = [int(part) for part in scales]
        except (TypeError, ValueError):
            raise InputError(f"scales {scales!r}: expected sides in pixels") from None
    if not parts or min(parts) < 1:
        raise InputError(f"scales {scales!r}: every side must be at least 1 pixel")
    return tuple(sorted(parts))


@dataclass(frozen=True)
class PatchGrid:
    """Selectable patches of one frame over all scales, scales ascending, each scale row-major.

    scales: (height, width) in pixels of the frame at each scale.
    patch: side of a patch in pixels, the same at every scale. Pixels that do not fill a patch are left out.
    """

    scales: tuple[tuple[int, int], ...]
    patch: int

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise InputError(f"patch size must be at least 1 pixel, got {self.patch}")
        for height, width in self.scales:
            if height < self.patch or width < self.patch:
                raise InputError(f"scale {width}x{height} holds no patch of {self.patch} pixels")

    @classmethod
    def of(cls, scales: str | int | Iterable[Side], patch: int) -> PatchGrid:
        """From square sides (`"56+112"`, ints) or (height, width) pairs; sorted ascending by area."""
        if isinstance(scales, (str, int)):
            scales = parse_scales(scales)
        try:
            sides = [(side, side) if isinstance(side, int) else (int(side[0]), int(side[1])) for side in scales]
        except (TypeError, ValueError, IndexError):
            raise InputError(f"scales {scales!r}: expected sides in pixels, or pairs of height and width") from None
        return cls(tuple(sorted(sides, key=lambda side: side[0] * side[1])), patch)

    @functools.cached_property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of patches at each scale."""
        return tuple((height // self.patch, width // self.patch) for height, width in self.scales)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Patches at each scale."""
        return tuple(rows * columns for rows, columns in self.cells)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first patch of each scale, and the total at the end."""
        total, result = 0, [0]
        for count in self.counts:
            total += count
            result.append(total)
        return tuple(result)

    @property
    def size(self) -> int:
        """Patches of a frame over all scales (N)."""
        return self.offsets[-1]

    def locate(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Index within a frame (any shape, 0 <= index < size) -> (scale number, row, column), each of that shape."""
        bounds = torch.tensor(self.offsets[1:], device=index.device)
        scale = torch.bucketize(index, bounds, right=True)
        start = torch.tensor(self.offsets[:-1], device=index.device)[scale]
        columns = torch.tensor([columns for _, columns in self.cells], device=index.device)[scale]
        local = index - start
        return scale, local // columns, local % columns

    def check_same(self, other: PatchGrid, mine: str, theirs: str) -> None:
        """Raises InputError naming both grids when they differ."""
        if self != other:
            raise InputError(f"grid mismatch: {mine} uses {self}, {theirs} uses {other}; indices would be misread")

    def __str__(self) -> str:
        sides = "+".join(str(h) if h == w else f"{w}x{h}" for h, w in self.scales)
        return f"{sides} at patch {self.patch} ({'+'.join(map(str, self.counts))} = {self.size} positions)"


DEFAULT_GRID = PatchGrid.of("32+64+112+224", 16)  # that of the released gaze model


def mask_to_positions(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """0/1 mask (R, n) -> ascending positions of the ones (R, k), -1 where a row has fewer, and padding flags (R, k).

    k is the largest count over rows; an empty mask gives k = 0.
    """
    wanted = mask.bool()
    counts = wanted.sum(dim=1)
    longest = int(counts.max()) if wanted.numel() else 0
    order = torch.argsort((~wanted).to(torch.uint8), dim=1, stable=True)[:, :longest]
    padded = torch.arange(longest, device=mask.device)[None] >= counts[:, None]
    return order.masked_fill(padded, -1), padded


def positions_to_masks(
    index: torch.Tensor, keep: torch.Tensor, frame: torch.Tensor, frames: int, grid: PatchGrid
) -> list[torch.Tensor]:
    """Selected patches as masks.

    index, keep: (B, n) index within the frame and whether it counts; frame: (n,) its frame number.
    Returns one (B, frames, patches of the scale) float mask per scale.
    """
    batch = index.shape[0]
    # One extra column swallows the entries that do not count.
    flat = torch.zeros(batch, frames * grid.size + 1, device=index.device)
    target = torch.where(keep, index + frame[None] * grid.size, frames * grid.size)
    flat.scatter_(1, target, 1.0)
    full = flat[:, :-1].view(batch, frames, grid.size)
    return list(full.split(list(grid.counts), dim=2))


def sides_of(grid: PatchGrid) -> list[Side]:
    """Scales as users write them: an int where square, a (height, width) pair elsewhere."""
    return [h if h == w else (h, w) for h, w in grid.scales]
