"""Pixels: resizing, and the values that a tower wants."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


def resize_bicubic(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Keys bicubic (a = -0.75), half-pixel centres, edges repeated, no antialiasing. (..., C, H, W) -> (..., C, h, w).

    Equal sizes return the input itself.
    """
    if images.shape[-2:] == (height, width):
        return images
    if images.device.type == "cuda":
        return _resize_by_products(images, height, width)
    flat = images.reshape(-1, *images.shape[-3:])
    return F.interpolate(flat, size=(height, width), mode="bicubic", align_corners=False).unflatten(
        0, images.shape[:-3]
    )


def _resize_by_products(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The same as two matrix products in float32. CUDA's own kernel lets one thread work on a pixel of all images, so
    that thousands of small pictures take it fifty times as long."""
    rows, columns = (
        _bicubic_matrix(*sizes, images.device) for sizes in zip(images.shape[-2:], (height, width), strict=True)
    )
    with torch.autocast(images.device.type, enabled=False):  # pixels in half precision would not be the same
        return (rows @ (images.float() @ columns.T)).to(images.dtype)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # it is kept for later calls, which may learn through it
def _bicubic_matrix(size: int, wanted: int, device: torch.device) -> torch.Tensor:
    """(wanted, size) weights of the pixels along one axis: what resizing makes of each of them alone."""
    units = torch.eye(size, dtype=torch.float32, device="cpu")[
        None, None
    ]  # a row for each pixel, resized along the row
    resized = F.interpolate(units, size=(size, wanted), mode="bicubic", align_corners=False)
    return resized[0, 0].T.contiguous().to(device)


@dataclass(frozen=True)
class PixelFormat:
    """How the tower wants its pixels: (x - mean) / std of values in [0, 1]."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) in [0, 1] -> the tower's values."""
        mean = torch.tensor(self.mean, device=frames.device, dtype=frames.dtype)[:, None, None]
        std = torch.tensor(self.std, device=frames.device, dtype=frames.dtype)[:, None, None]
        return (frames - mean) / std

    def normalize_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, 3 * patch * patch) in [0, 1] -> the tower's values. Far fewer than normalising frames first, and the
        same, because resizing keeps constants."""
        return self.normalize(patches.unflatten(1, (3, -1, 1))).flatten(1)


def resize_frames(frames: np.ndarray, height: int, width: int, device: torch.device) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> uint8 (n, 3, height, width) on `device`: antialiased bicubic, aspect not kept."""
    pixels = torch.from_numpy(frames)
    if device.type == "cuda":  # from page-locked memory the copy runs beside what the caller does next
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    pixels = pixels.to(device).permute(0, 3, 1, 2)
    if pixels.shape[-2:] == (height, width):
        return pixels
    size, mode = (height, width), "bicubic"
    if device.type == "cpu":  # where torch resizes bytes directly
        return F.interpolate(pixels, size=size, mode=mode, antialias=True)
    return F.interpolate(pixels.float(), size=size, mode=mode, antialias=True).round().clamp(0, 255).byte()
