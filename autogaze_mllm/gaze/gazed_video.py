"""GazedVideo: what is left of a video after gazing, packed without padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError
from ..common.storage.files import output_folder
from ..common.storage.json_text import Fields, shown
from ..common.storage.summed import read_summed, write_summed
from .grid import PatchGrid
from .patches import gather_patches
from .selection import read_selection

FORMAT = 1
TENSORS = ("patches", "positions", "frame_counts", "clip_frames", "timestamps", "pictures")


@dataclass
class GazedVideo:
    """Kept patches of all clips, in the order clip, frame, choice.

    patches: (N, tubelet * 3 * patch * patch) normalised for the tower. positions: (N,) index within the frame on
    `grid`.
    frame_counts: (F,) kept patches of every frame of every clip. clip_frames: (C,) frames of each clip; sums to F.
    timestamps: (F,) seconds. pictures: (F,) the picture of the video that each clip frame is part of: the tiles of one
    video frame share a number, thumbnails come after all frames (default: every clip frame is a picture of its own).
    tiles: (columns, rows) that frames were cut into. thumbnails: how many of the last clips are thumbnails.
    tubelet: frames of the video that a clip frame holds, kept wherever one of them was chosen. interval: seconds from
    one frame of the video to the next, 0 where that is not known.
    keep_after: share of the tokens that is left after the tower, None where none is dropped there.
    settings, stats: how it was made, and numbers about that (frames, seconds per stage, ...).
    """

    patches: torch.Tensor
    positions: torch.Tensor
    frame_counts: torch.Tensor
    clip_frames: torch.Tensor
    grid: PatchGrid
    timestamps: torch.Tensor
    pictures: torch.Tensor = None  # type: ignore[assignment]  # filled in below
    tiles: tuple[int, int] = (1, 1)
    thumbnails: int = 0
    tubelet: int = 1
    interval: float = 0.0
    keep_after: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pictures is None:
            self.pictures = torch.arange(len(self.frame_counts), device=self.frame_counts.device)
        if int(self.frame_counts.sum()) != len(self.positions) or len(self.patches) != len(self.positions):
            raise InputError(
                f"gazed video: {len(self.patches)} patches, {len(self.positions)} positions and counts that sum to "
                f"{int(self.frame_counts.sum())} do not fit together"
            )
        frames = int(self.clip_frames.sum())
        if not frames == len(self.frame_counts) == len(self.timestamps) == len(self.pictures):
            raise InputError(
                f"gazed video: clips of {frames} frames, {len(self.frame_counts)} frame counts, {len(self.timestamps)} "
                f"times and {len(self.pictures)} picture numbers do not fit together"
            )

    @classmethod
    def from_info(
        cls,
        pixels: torch.Tensor,
        info: Mapping[str, Any],
        grid: PatchGrid,
        timestamps: torch.Tensor | None = None,
        pictures: torch.Tensor | None = None,
        tubelet: int = 1,
    ) -> GazedVideo:
        """From normalised pixels (B, T, 3, H, W) and a selection in the interchange form; padding is dropped.

        timestamps, pictures: (B * T,), clip after clip. tubelet: so many frames become one clip frame, which keeps what
        any of them chose, in raster order; at the end of a clip its last frame is repeated.
        """
        batch, frames = pixels.shape[:2]
        selection = read_selection(info, grid, "the tower")
        if (len(selection.index), len(selection.counts)) != (batch, frames):
            raise InputError(
                f"gazing_info has {len(selection.index)} clips x {len(selection.counts)} frames, the pixels have "
                f"{batch} x {frames}"
            )
        keep = selection.keep.to(pixels.device)
        rows, columns = keep.nonzero(as_tuple=True)
        positions = selection.index.to(pixels.device)[rows, columns]
        frame = selection.frame.to(pixels.device)[columns]
        times = torch.zeros(batch * frames, device=pixels.device) if timestamps is None else timestamps
        steps = -(-frames // tubelet)
        flat = rows * steps + frame // tubelet
        if tubelet == 1:
            patches = gather_patches(pixels.flatten(0, 1), grid, flat, positions)
        else:
            joined = (flat * grid.size + positions).unique()  # sorted
            flat, positions = joined // grid.size, joined % grid.size
            members = (torch.arange(steps * tubelet, device=pixels.device)).clamp(max=frames - 1).view(steps, tubelet)
            shown = (flat // steps * frames)[:, None] + members[flat % steps]
            parts = [gather_patches(pixels.flatten(0, 1), grid, one, positions) for one in shown.unbind(1)]
            patches = torch.cat(parts, dim=1)
            times = times.view(batch, frames)[:, members.to(times.device)].mean(dim=2).flatten()
            if pictures is not None:
                pictures = pictures.view(batch, frames)[:, members[:, 0].to(pictures.device)].flatten()
        return cls(
            patches,
            positions,
            torch.bincount(flat, minlength=batch * steps),
            torch.full((batch,), steps, device=pixels.device),
            grid,
            times,
            pictures,  # type: ignore[arg-type]
            tubelet=tubelet,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[GazedVideo]) -> GazedVideo:
        """Clips one after the other, of chunks of one video: picture numbers stay as they are, settings and stats are
        left out. All grids must be the same."""
        if not parts:
            raise InputError("nothing to put together: no clip was gazed")
        for part in parts[1:]:
            parts[0].grid.check_same(part.grid, "the first part", "another part")
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
        return cls(**joined, grid=parts[0].grid, tiles=parts[0].tiles, tubelet=parts[0].tubelet)

    def __len__(self) -> int:
        """Kept patches."""
        return len(self.positions)

    @property
    def total_patches(self) -> int:
        """Patches that the grid has over all clip frames."""
        return self.grid.size * len(self.frame_counts)

    @property
    def num_pictures(self) -> int:
        """Video frames and thumbnails."""
        return len(self.pictures.unique())

    def picture_counts(self) -> list[int]:
        """Kept patches of each picture, all its tiles together, in the order of the visual tokens."""
        _, picture = self.pictures.unique(return_inverse=True)
        return torch.zeros_like(picture).index_add(0, picture, self.frame_counts)[: self.num_pictures].tolist()

    def tile_numbers(self) -> torch.Tensor:
        """(F,) which tile of its picture each clip frame is, row by row."""
        order = self.pictures.argsort(stable=True)
        pictures = self.pictures[order]
        starts = torch.searchsorted(pictures, pictures)  # where the picture's first clip frame is
        return torch.empty_like(order).index_put((order,), torch.arange(len(order), device=order.device) - starts)

    def token_order(self, raster: bool = False, across_tiles: bool = False) -> torch.Tensor:
        """(N,) packed rows in the order of the visual tokens: picture after picture, in each its tiles row by row.

        raster: within a tile scale after scale, each row by row; otherwise as the patches were chosen. across_tiles:
        the rows of a scale reach across all tiles, as if the picture had not been cut.
        """
        frame = torch.repeat_interleave(self.pictures, self.frame_counts)
        if not raster:
            return frame.argsort(stable=True)
        if across_tiles and self.tiles != (1, 1):
            return self._order_across_tiles(frame)
        clip_frame = torch.repeat_interleave(
            torch.arange(len(self.frame_counts), device=frame.device), self.frame_counts
        )
        order = (clip_frame * self.grid.size + self.positions).argsort(stable=True)
        return order[frame[order].argsort(stable=True)]

    def _order_across_tiles(self, frame: torch.Tensor) -> torch.Tensor:
        """frame: (N,) picture of each packed row."""
        tile = torch.repeat_interleave(self.tile_numbers(), self.frame_counts)
        scale, row, column = self.grid.locate(self.positions)
        sizes = torch.tensor(self.grid.cells, device=frame.device)
        row = tile // self.tiles[0] * sizes[scale, 0] + row
        column = tile % self.tiles[0] * sizes[scale, 1] + column
        rows, columns = self.tiles[1] * int(sizes[:, 0].max()), self.tiles[0] * int(sizes[:, 1].max())
        return (((frame * len(sizes) + scale) * rows + row) * columns + column).argsort(stable=True)

    def without_patches(self) -> GazedVideo:
        """The same on the CPU, all but the pixels: where the kept patches lie."""
        nothing = self.patches.new_empty(len(self), 0)
        return dataclasses.replace(self, patches=nothing).to("cpu")

    def between(self, start: float, end: float) -> GazedVideo:
        """The clip frames with start <= time < end, in seconds. Raises InputError when there are none."""
        wanted = (self.timestamps >= start) & (self.timestamps < end)
        if not bool(wanted.any()):
            raise InputError(f"no frame between {start} and {end} seconds; there are {self._span()}")
        rows = torch.repeat_interleave(wanted, self.frame_counts)
        clip = torch.repeat_interleave(torch.arange(len(self.clip_frames), device=wanted.device), self.clip_frames)
        frames = torch.zeros_like(self.clip_frames).index_add(0, clip, wanted.long())
        return dataclasses.replace(
            self,
            patches=self.patches[rows],
            positions=self.positions[rows],
            frame_counts=self.frame_counts[wanted],
            clip_frames=frames[frames > 0],
            timestamps=self.timestamps[wanted],
            pictures=self.pictures[wanted],
            thumbnails=int((frames[len(frames) - self.thumbnails :] > 0).sum()),
            stats={},
        )

    def clip_groups(self, max_patches: int) -> Iterator[GazedVideo]:
        """The clips in order, in groups of at most max_patches kept patches (a longer clip is a group of its own).

        The groups are views: nothing is copied.
        """
        frame_ends = [0, *self.clip_frames.cumsum(0).tolist()]
        patch_ends = [0, *self.frame_counts.cumsum(0).tolist()]
        ends = [patch_ends[frame] for frame in frame_ends]  # patches before each clip, and all
        first = 0
        for clip in range(1, len(ends)):
            if clip == len(ends) - 1 or ends[clip + 1] - ends[first] > max_patches:
                frames = slice(frame_ends[first], frame_ends[clip])
                patches = slice(ends[first], ends[clip])
                yield dataclasses.replace(
                    self,
                    patches=self.patches[patches],
                    positions=self.positions[patches],
                    frame_counts=self.frame_counts[frames],
                    clip_frames=self.clip_frames[first:clip],
                    timestamps=self.timestamps[frames],
                    pictures=self.pictures[frames],
                    thumbnails=max(clip - max(first, len(ends) - 1 - self.thumbnails), 0),
                )
                first = clip

    def _span(self) -> str:
        return f"frames from {float(self.timestamps.min()):.2f} to {float(self.timestamps.max()):.2f} seconds"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GazedVideo:
        """Everything on `device`, the patches in `dtype`."""
        moved = {name: getattr(self, name).to(device=device) for name in TENSORS[1:]}
        return dataclasses.replace(self, patches=self.patches.to(device=device, dtype=dtype), **moved)

    def save(self, path: str | Path) -> None:
        """One safetensors file, which takes its name when it is complete."""
        target = Path(path)
        output_folder(target.parent)
        facts = {
            "format": FORMAT,
            "grid": {"scales": self.grid.scales, "patch": self.grid.patch},
            "tiles": self.tiles,
            "thumbnails": self.thumbnails,
            "tubelet": self.tubelet,
            "interval": self.interval,
            "keep_after": self.keep_after,
            "settings": self.settings,
            "stats": self.stats,
        }
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        write_summed(target, tensors, "gazed_video", facts)

    @classmethod
    def load(cls, path: str | Path, patches: bool = True) -> GazedVideo:
        """What `save` wrote, on the CPU; without the patches' pixels where they are not wanted. Raises InputError for
        anything else."""
        wanted = [name for name in TENSORS if patches or name != "patches"]
        tensors, stored = read_summed(Path(path), wanted, "gazed_video", "a saved gazed video")
        if stored.get("format", Any, None) != FORMAT:
            raise InputError(f"{path}: format {shown(stored.values.get('format'))}, this version reads {FORMAT}")
        of_grid = stored.object("grid")
        sides = of_grid.made("scales", list[tuple[int, int]], lambda found: tuple(map(tuple, found)))
        grid = of_grid.made("patch", int, lambda patch: PatchGrid(sides, patch))
        thumbnails, tiles = stored.get("thumbnails", int), stored.get("tiles", tuple[int, int])
        stats = stored.get("stats", dict[str, Any])
        Fields(stats, f"{path}: stats").get("seconds", dict[str, float], {})
        tubelet = stored.get("tubelet", int, 1)
        _check(path, tensors, grid, thumbnails, tiles, tubelet)
        tensors.setdefault("patches", torch.empty(len(tensors["positions"]), 0))
        return cls(
            **tensors,
            grid=grid,
            tiles=tuple(tiles),
            thumbnails=thumbnails,
            tubelet=tubelet,
            interval=stored.get("interval", float, 0.0),
            keep_after=stored.get("keep_after", float | None, None),
            settings=stored.get("settings", dict[str, Any]),
            stats=stats,
        )


def _check(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    grid: PatchGrid,
    thumbnails: int,
    tiles: Sequence[int],
    tubelet: int,
) -> None:
    """Raises InputError for values of a file that cannot be: they would be read as other patches, or fail later."""

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise InputError(f"{path}: not a saved gazed video ({message})")

    require(grid.size > 0, "its grid has no patches")
    require(tubelet > 0, f"tubelets of {tubelet} frames")
    for name in tensors.keys() & {"patches", "timestamps"}:
        require(tensors[name].is_floating_point(), f"{name} are {tensors[name].dtype}")
        require(bool(tensors[name].isfinite().all()), f"{name} hold numbers that are not finite")
    whole = {"positions": grid.size, "frame_counts": grid.size + 1, "clip_frames": None, "pictures": None}
    for name, end in whole.items():
        values = tensors[name]
        require(values.dtype in (torch.int64, torch.int32), f"{name} are {values.dtype}")
        if values.numel():
            require(int(values.min()) >= 0, f"{name} hold {int(values.min())}")
            require(end is None or int(values.max()) < end, f"{name} hold {int(values.max())} on a grid of {grid.size}")
    for name, values in tensors.items():
        dimensions = 2 if name == "patches" else 1
        require(values.ndim == dimensions, f"{name} have the shape {tuple(values.shape)}")
    width, found = 3 * grid.patch**2 * tubelet, tensors.get("patches")
    require(found is None or found.shape[1] == width, f"patches are not of {width} values")
    require(len(tensors["clip_frames"]) > 0 and int(tensors["clip_frames"].min()) > 0, "a clip has no frames")
    require(0 <= thumbnails <= len(tensors["clip_frames"]), f"{thumbnails} thumbnails")
    require(min(tiles) > 0, f"tiles {shown(tiles)}")
