"""To and from the processor outputs of the published NVILA-HD-Video model: `gazing_info`, a dict of six lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..common.errors import InputError
from ..gaze.gazed_video import GazedVideo
from ..gaze.grid import PatchGrid
from ..gaze.selection import build_info

KINDS = ("tiles", "thumbnails")


def to_gazing_info(videos: Sequence[GazedVideo]) -> dict[str, list[torch.Tensor]]:
    """One entry per video in each list: gazing_pos_* (clips, n) int64 that count on over the clip's frames,
    num_gazing_each_frame_* (T,), if_padded_gazing_* (clips, n). A clip that is shorter than the others (the end of the
    video) has padding only in the frames that it lacks."""
    result: dict[str, list[torch.Tensor]] = {}
    for video in videos:
        tile_clips = len(video.clip_frames) - video.thumbnails
        for kind, clips in (("tiles", range(tile_clips)), ("thumbnails", range(tile_clips, len(video.clip_frames)))):
            info = _padded(video, list(clips))
            for name in ("gazing_pos", "num_gazing_each_frame", "if_padded_gazing"):
                result.setdefault(f"{name}_{kind}", []).append(info[name])
    return result


def _padded(video: GazedVideo, clips: list[int]) -> Mapping[str, torch.Tensor]:
    """Interchange form of some clips of a video."""
    first_frame = torch.cat([video.clip_frames.new_zeros(1), video.clip_frames.cumsum(0)]).tolist()
    first_patch = torch.cat([video.frame_counts.new_zeros(1), video.frame_counts.cumsum(0)]).tolist()
    frames = max((int(video.clip_frames[clip]) for clip in clips), default=1)
    kept = torch.zeros(len(clips), frames, dtype=torch.long)
    for row, clip in enumerate(clips):
        counts = video.frame_counts[first_frame[clip] : first_frame[clip + 1]]
        kept[row, : len(counts)] = counts
    longest = kept.amax(dim=0) if clips else kept.new_zeros(frames)
    keep = torch.cat([torch.arange(int(n))[None] < kept[:, t, None] for t, n in enumerate(longest)], dim=1)
    ids = torch.zeros(keep.shape, dtype=torch.long)
    for row, clip in enumerate(clips):
        ids[row, keep[row]] = video.positions[first_patch[first_frame[clip]] : first_patch[first_frame[clip + 1]]].cpu()
    return build_info(ids, keep, longest.tolist(), video.grid, pad_id=-1)


def from_gazing_info(
    info: Mapping[str, Sequence[torch.Tensor]],
    tiles: Sequence[torch.Tensor],
    thumbnails: Sequence[torch.Tensor],
    num_tiles: Sequence[int],
    grid: PatchGrid,
) -> list[GazedVideo]:
    """The published processor's outputs, one GazedVideo per video.

    tiles: per video (chunks * tiles, 16, 3, h, w) normalised pixels; thumbnails: per video (m, 1, 3, h, w); num_tiles:
    spatial tiles of each video. grid: the tower's, checked against every index. Times and the tiles'
    columns and rows are not told: times are set to 0, tiles to (number, 1).
    """
    videos = []
    for number, (tile_pixels, thumbnail_pixels, spatial) in enumerate(zip(tiles, thumbnails, num_tiles, strict=True)):
        if not spatial or len(tile_pixels) % spatial:
            raise InputError(
                f"video {number}: {len(tile_pixels)} clips are not a whole number of chunks of {spatial} tiles"
            )
        frames = tile_pixels.shape[1]
        pictures = torch.arange(len(tile_pixels) // spatial)[:, None, None] * frames + torch.arange(frames)
        pictures = pictures.expand(-1, spatial, -1).flatten()
        total = len(tile_pixels) // spatial * frames
        parts = [_clips(info, "tiles", number, tile_pixels, grid, pictures)]
        if len(thumbnail_pixels):
            numbers = total + torch.arange(len(thumbnail_pixels))
            parts.append(_clips(info, "thumbnails", number, thumbnail_pixels, grid, numbers))
        video = GazedVideo.concatenate(parts)
        video.tiles, video.thumbnails = (spatial, 1), len(thumbnail_pixels)
        videos.append(_without_missing_frames(video))
    return videos


def _clips(
    info: Mapping[str, Any], kind: str, number: int, pixels: torch.Tensor, grid: PatchGrid, pictures: torch.Tensor
) -> GazedVideo:
    names = ("gazing_pos", "num_gazing_each_frame", "if_padded_gazing")
    part = {name: info[f"{name}_{kind}"][number] for name in names}
    return GazedVideo.from_info(pixels, part, grid, pictures=pictures)


def _without_missing_frames(video: GazedVideo) -> GazedVideo:
    """Every frame that exists keeps a patch: frames of a clip without any are the filling of a short last chunk."""
    there = video.frame_counts > 0
    clip = torch.repeat_interleave(torch.arange(len(video.clip_frames)), video.clip_frames)
    video.clip_frames = torch.zeros_like(video.clip_frames).index_add(0, clip, there.long())
    video.frame_counts, video.timestamps = video.frame_counts[there], video.timestamps[there]
    video.pictures = video.pictures[there].unique(return_inverse=True)[1]  # numbered without gaps
    return video
