"""A folder of small clips, decoded once and kept on the device as bytes.

PACK/{train,generated,validation}/NAME.mp4, and NAME~KIND.mp4 beside it: the same frames as a camera might have stored
them (see scripts/pack_clips.py). A few hundred clips are one to three GB.

Shapes: T frames of a clip, H x W pixels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...common.errors import InputError
from ...video.reader import VideoReader


@dataclass(frozen=True)
class PackedClip:
    """clean, and each of `stored`: (T, 3, H, W) uint8 on the device."""

    name: str
    clean: torch.Tensor
    stored: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.clean)


def read_pack(
    pack: str | Path, split: str, device: torch.device, *, workers: int = 16, limit: int | None = None
) -> list[PackedClip]:
    """The clips of a split in name order, the first `limit` of them. Raises InputError where there is none."""
    files = sorted(Path(pack, split).glob("*.mp4"))
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(file.stem.partition("~")[0], []).append(file)
    chosen = list(groups.items())[:limit]
    if not chosen:
        raise InputError(f"{Path(pack, split)}: no packed clips there; scripts/pack_clips.py makes them")
    with ThreadPoolExecutor(workers) as pool:
        decoded = dict(
            zip(
                [file for _, group in chosen for file in group],
                pool.map(_decode, [file for _, group in chosen for file in group]),
                strict=True,
            )
        )
    clips = []
    for name, group in chosen:
        frames = [decoded[file].to(device).movedim(-1, 1).contiguous() for file in group]
        if any(part.shape != frames[0].shape for part in frames):
            raise InputError(f"{group[0]}: the versions of this clip do not have the same frames")
        clips.append(PackedClip(name, frames[0], tuple(frames[1:])))
    return clips


def _decode(file: Path) -> torch.Tensor:
    """(T, H, W, 3) uint8"""
    chunks = [chunk.frames for chunk in VideoReader(file, threads=1).read()]
    return torch.from_numpy(np.concatenate(chunks))
