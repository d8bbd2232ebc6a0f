"""Gazed towers that take pictures of any size: those of Qwen-VL and VideoLLaMA3, called as they are.

Such a tower takes rows of patches and a layout (rotary positions, segments of attention, windows, places in its
position table) that it would otherwise compute for whole pictures. Here the layout is that of the kept groups, so
nothing of the tower is written again. Groups of merge x merge patches stay whole: each becomes one visual token.

Shapes: N kept groups, r patches per side of a group, p pixels per side of a patch, f frames of a tubelet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..common.compute.offloading import execution_device
from ..common.errors import InputError
from ..gaze.gazed_video import GazedVideo
from ..gaze.grid import PatchGrid, Side
from ..gaze.settings import VideoSettings
from ..video.tiles import choose_tiles

ENCODE_PATCHES = 1 << 15  # patches that are encoded at a time
CoarsePositions = Literal["native", "fine"]


class AnySizeTower(nn.Module):
    """base_tower: a vision model that takes its own layout. cells: rows and columns of groups at each scale of a square
    picture of the size that is gazed as one (the gaze model's own cells).

    scales: None: each video has a ladder of its own, as its shape and max_tiles want (`grid_for`); otherwise sides in
    pixels, the same for every video. coarse_positions: rotary positions of coarse scales count their own patches
    (native, as the tower saw pictures of that size), or those of the finest scale that they cover (fine).
    """

    # Attention is the base's own: within a tubelet, all scales of it.
    attn_type, frame_independent = "block_causal", True

    def __init__(
        self,
        base_tower: nn.Module,
        patch_size: int,
        group: int,
        tubelet: int,
        cells: Sequence[tuple[int, int]],
        scales: str | int | list[Side] | None = None,
        coarse_positions: CoarsePositions = "native",
    ) -> None:
        super().__init__()
        if coarse_positions not in get_args(CoarsePositions):
            known = " or ".join(get_args(CoarsePositions))
            raise InputError(f"coarse_positions must be {known}, got {coarse_positions!r}")
        self.base_tower: Any = base_tower
        self.group, self.tubelet, self.coarse_positions = group, tubelet, coarse_positions
        self.patch = patch_size * group
        self.cells = [tuple(side) for side in cells]
        self.fixed = scales is not None
        self.grid = PatchGrid.of(scales, self.patch) if scales is not None else self._ladder(1, 1)

    def _ladder(self, columns: int, rows: int) -> PatchGrid:
        """The gaze model's cells, so many times in each direction."""
        g = self.patch
        return PatchGrid(tuple((r * rows * g, c * columns * g) for r, c in self.cells), g)

    @property
    def thumbnail_cells(self) -> int:
        """Patches of a frame, at most, where it is chosen as a thumbnail: as many as one square's finest scale has."""
        rows, columns = self.cells[-1]
        return rows * columns

    @property
    def device(self) -> torch.device:
        return execution_device(self.base_tower)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.base_tower.parameters()).dtype

    def grid_for(self, width: int, height: int, settings: VideoSettings) -> PatchGrid:
        """What a video of width x height pixels is selected on: up to max_tiles squares of the gaze model's own size,
        in the arrangement that is nearest to its shape, seen by the tower as one picture."""
        if self.fixed:
            return self.grid
        side = self._ladder(1, 1).scales[-1][0]
        return self._ladder(*choose_tiles(width, height, settings.max_tiles, side, settings.enlarge))

    def facts(self) -> dict[str, Any]:
        """Json values besides the grid that decide which groups are kept, and what the tower makes of them."""
        return {"tubelet": self.tubelet, "fixed": self.fixed, "coarse_positions": self.coarse_positions}

    def check_video(self, gazed: GazedVideo) -> None:
        """Raises InputError for a video that was gazed for another tower."""
        if gazed.tubelet != self.tubelet:
            raise InputError(f"the video was gazed in steps of {gazed.tubelet} frames, the tower takes {self.tubelet}")
        if self.fixed or gazed.grid.patch != self.patch:
            self.grid.check_same(gazed.grid, "the tower", "the gazed video")

    def rows(self, gazed: GazedVideo) -> torch.Tensor:
        """(F,) rows that `encode` gives for each tubelet."""
        return gazed.frame_counts

    def token_order(self, gazed: GazedVideo, raster: bool) -> torch.Tensor:
        """Rows of `encode` in the order of the visual tokens."""
        return gazed.token_order(raster, across_tiles=True)

    def pixels(self, gazed: GazedVideo) -> torch.Tensor:
        """Rows as the tower takes them, (N * r * r, 3 * f * p * p): group after group, each row by row; of every patch
        channel, frame, row, column."""
        r, f = self.group, self.tubelet
        p = self.patch // r
        cut = gazed.patches.view(-1, f, 3, r, p, r, p)
        return cut.permute(0, 3, 5, 2, 1, 4, 6).reshape(-1, 3 * f * p * p)

    def coordinates(self, gazed: GazedVideo) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of every patch within its scale (N * r * r, 2), and rows and columns of that scale."""
        r = self.group
        scale, row, column = gazed.grid.locate(gazed.positions)
        inner = torch.arange(r, device=row.device)
        down = (row[:, None, None] * r + inner[None, :, None]).expand(-1, r, r)
        across = (column[:, None, None] * r + inner[None, None, :]).expand(-1, r, r)
        sizes = torch.tensor(gazed.grid.cells, device=row.device)[scale] * r
        return torch.stack([down, across], dim=-1).view(-1, 2), sizes.repeat_interleave(r * r, dim=0)

    def rotary_positions(self, gazed: GazedVideo) -> torch.Tensor:
        """(N * r * r, 2), whole numbers where they count the patches of their own scale."""
        positions, sizes = self.coordinates(gazed)
        if self.coarse_positions == "native":
            return positions
        finest = torch.tensor(gazed.grid.cells[-1], device=positions.device) * self.group
        return (positions + 0.5) * finest / sizes - 0.5

    def segments(self, gazed: GazedVideo) -> torch.Tensor:
        """Where the patches of each tubelet that keeps anything begin, and the end, int32."""
        counts = gazed.frame_counts[gazed.frame_counts > 0] * self.group**2
        return _starts(counts)

    def layout(self, gazed: GazedVideo) -> dict[str, torch.Tensor]:
        """What the tower takes beside pixels."""
        return {"position_ids": self.rotary_positions(gazed), "cu_seqlens": self.segments(gazed)}

    def encode(self, gazed: GazedVideo) -> torch.Tensor:
        """Features of the kept groups in the order of `gazed` (N, D), after the tower's own merger; those of deepstack
        follow on the channels. Moments never see each other: at most ENCODE_PATCHES are run at a time, which bounds the
        memory of long videos."""
        self.check_video(gazed)
        if not len(gazed):
            raise InputError("nothing of the video was kept, and the tower cannot run on nothing")
        groups = gazed.clip_groups(max(ENCODE_PATCHES // self.group**2, 1))
        return torch.cat([self.encode_part(part.to(self.device)) for part in groups if len(part)])

    def encode_part(self, gazed: GazedVideo) -> torch.Tensor:
        """The same of a few clips, which are on the tower's device."""
        output = self.base_tower(self.pixels(gazed), grid_thw=None, **self.layout(gazed))
        deep = getattr(output, "deepstack_features", None) or []
        return torch.cat([output.pooler_output, *deep], dim=-1)


class WindowTower(AnySizeTower):
    """Qwen2.5-VL's: most layers attend within windows, of each scale its own."""

    def layout(self, gazed: GazedVideo) -> dict[str, torch.Tensor]:
        config = self.base_tower.config
        side = config.window_size // config.patch_size // self.group
        scale, row, column = gazed.grid.locate(gazed.positions)
        frame = torch.repeat_interleave(torch.arange(len(gazed.frame_counts), device=scale.device), gazed.frame_counts)
        down, across = (max(cells[axis] for cells in gazed.grid.cells) // side + 1 for axis in (0, 1))
        key = ((frame * len(gazed.grid.cells) + scale) * down + row // side) * across + column // side
        order = key.argsort(stable=True)
        _, counts = key[order].unique_consecutive(return_counts=True)
        windows = {"window_index": order, "cu_window_seqlens": _starts(counts * self.group**2)}
        return super().layout(gazed) | windows


class TableTower(AnySizeTower):
    """Qwen3-VL's: a square table of positions besides, read between its entries (bilinear, corners aligned)."""

    def layout(self, gazed: GazedVideo) -> dict[str, torch.Tensor]:
        side = round(self.base_tower.config.num_position_embeddings**0.5)
        positions, sizes = self.coordinates(gazed)
        exact = positions.float() * (side - 1) / (sizes - 1).clamp(min=1)
        low = exact.floor()
        part = exact - low
        taps = torch.stack([low, low + 1], dim=-1).long().clamp(max=side - 1)  # (n, axis, tap)
        weights = torch.stack([1 - part, part], dim=-1)
        table = {
            "interp_indices": (taps[:, 0, :, None] * side + taps[:, 1, None, :]).flatten(1),
            "interp_weights": (weights[:, 0, :, None] * weights[:, 1, None, :]).flatten(1),
        }
        return super().layout(gazed) | table


class MeanTower(AnySizeTower):
    """VideoLLaMA3's: the patches of a group are averaged after the last norm, and the projector comes after the
    tower."""

    def encode_part(self, gazed: GazedVideo) -> torch.Tensor:
        tower = self.base_tower
        x = tower.embeddings(self.pixels(gazed).to(tower.dtype))
        rotary = tower.rotary_pos_emb(x, self.rotary_positions(gazed))
        segments = self.segments(gazed)
        longest = int((segments[1:] - segments[:-1]).max())
        x = tower.encoder(x, cu_seqlens=segments, max_seqlen=longest, position_embeddings=rotary)[0]
        return tower.post_layernorm(x).unflatten(0, (-1, self.group**2)).mean(dim=1)


class PositionTower(AnySizeTower):
    """Gemma 4's: a row of patches for every frame, padded, each patch with its column and row; the patches of a group
    are averaged at the end. Frames are run in batches of at most ENCODE_PATCHES."""

    def encode_part(self, gazed: GazedVideo) -> torch.Tensor:
        tower = self.base_tower
        positions, sizes = self.coordinates(gazed)
        most = tower.config.position_embedding_size
        if int(sizes.max()) > most:
            raise InputError(f"the tower knows {most} patches along a side, the video has {int(sizes.max())}")
        positions = positions if self.coarse_positions == "native" else self.rotary_positions(gazed).round().long()
        pixels = self.pixels(gazed).view(len(positions), 3, -1).transpose(1, 2).flatten(1)  # channels last
        counts = (gazed.frame_counts[gazed.frame_counts > 0] * self.group**2).tolist()
        found = []
        for rows in _batches(counts, ENCODE_PATCHES):
            taken = sum(counts[rows])
            found.append(self._batch(pixels[:taken], positions[:taken].flip(1), counts[rows]))
            pixels, positions = pixels[taken:], positions[taken:]
        return torch.cat(found)

    def _batch(self, pixels: torch.Tensor, positions: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """pixels (n, 3 * p * p), positions (n, 2), of frames with so many patches -> (n / group^2, C)."""
        tower = self.base_tower
        real = torch.arange(max(counts), device=pixels.device) < torch.tensor(counts, device=pixels.device)[:, None]
        padded = pixels.new_zeros(*real.shape, pixels.shape[1]).masked_scatter(real[..., None], pixels)
        at = torch.full((*real.shape, 2), -1, device=pixels.device).masked_scatter(real[..., None], positions)
        x = tower.patch_embedder(padded, at, ~real)
        x = tower.encoder(inputs_embeds=x, attention_mask=real, pixel_position_ids=at).last_hidden_state
        means = x[real].unflatten(0, (-1, self.group**2)).float().mean(dim=1).to(x.dtype)
        pooled = means.float() * tower.config.hidden_size**0.5  # beyond the range of half precision
        if tower.config.standardize:
            pooled = (pooled - tower.std_bias.float()) * tower.std_scale.float()
        return pooled.to(x.dtype)


def _batches(counts: list[int], most: int) -> Iterator[slice]:
    """Frames that go together: so many that none is padded to more than `most` patches with the others."""
    first = 0
    for end in range(1, len(counts) + 1):
        if end == len(counts) or max(counts[first : end + 1]) * (end + 1 - first) > most:
            yield slice(first, end)
            first = end


def _starts(counts: torch.Tensor) -> torch.Tensor:
    ends = counts.cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]).int()
