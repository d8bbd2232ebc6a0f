"""Cutting large frames into tiles, and choosing thumbnails: the arithmetic of NVILA-HD-Video."""

from __future__ import annotations

from collections.abc import Sequence

from ..common.errors import InputError


def choose_tiles(width: int, height: int, max_tiles: int, side: int, enlarge: bool = True) -> tuple[int, int]:
    """(columns, rows) of square tiles of `side` pixels for a frame of width x height pixels.

    The grid with at most max_tiles tiles whose aspect is nearest to the frame's. Among equally near ones a larger grid
    wins only if the frame has more than half of its pixels. enlarge: a small frame may be enlarged to many tiles, as
    published; otherwise only grids that are nowhere larger than the frame are considered, and a single tile.
    """
    if max_tiles < 1:
        raise InputError(f"max_tiles must be at least 1, got {max_tiles}")
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1)]
    if not enlarge:
        grids = [(c, r) for c, r in grids if (c * side <= width and r * side <= height) or c == r == 1]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        enough = width * height > 0.5 * side * side * columns * rows
        if distance < nearest or (distance == nearest and enough):
            best, nearest = (columns, rows), distance
    return best


def choose_thumbnails(sampled: Sequence[int], wanted: int) -> list[int]:
    """Every (sampled // wanted)-th of the sampled frames, `wanted` at most; all if fewer were sampled."""
    if wanted <= 0:
        return []
    step = max(len(sampled) // wanted, 1)
    return list(sampled[::step][:wanted])
