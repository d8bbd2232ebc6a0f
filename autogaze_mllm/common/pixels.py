"""Pixels: opening pictures, resizing, and the values that a tower wants."""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InputError, first_line
from .storage.paths import check_path, shown_name

PictureSource = str | Path | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor
TAKEN = "a path, bytes, an open file, Pillow's, an array or tensor (H, W, 3) or (3, H, W)"
# What Pillow raises for files that are damaged, too large, or of a kind that it does not know.
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError,
                  MemoryError, Image.DecompressionBombError)  # fmt: skip
CHANNELS = 3
ROUNDING = 1e-3  # how far above 1 or below 0 a float may be after somebody's resizing
DEEP = 65535  # white of a picture with 16 bits to a channel


def open_picture(source: PictureSource) -> Image.Image:
    """A picture as a viewer shows it: RGB, upright, what is transparent over white, deep ones in 8 bits.

    source: a path, bytes, an open binary file, a picture of Pillow, or an array or tensor as `picture_array` takes it.
    Of several pictures in a file, the first.
    Raises InputError for what is no picture, is cut off, or has more pixels than Pillow takes for safe.
    """
    if isinstance(source, Image.Image):
        return rgb_picture(source, "picture")
    if isinstance(source, (str, os.PathLike)):
        check_path(source, "picture")
        opened: Any = os.fspath(source)
        name = shown_name(opened)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, opened = f"picture of {len(source)} bytes", io.BytesIO(source)
    elif callable(getattr(source, "read", None)):
        name, opened = f"open file {shown_name(str(getattr(source, 'name', '')))}".rstrip(), source
    elif hasattr(source, "shape") and not isinstance(source, type):
        return Image.fromarray(picture_array(source, "picture"))
    else:
        raise InputError(f"{type(source).__name__} is no picture; what is: {TAKEN}")
    try:
        with Image.open(opened) as image:
            return rgb_picture(image, name)
    except PICTURE_ERRORS as error:
        if isinstance(error, InputError):
            raise
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise InputError(f"{name}: not a readable image ({reason})") from error


def pictures_in(given: Any) -> list[Any]:
    """One picture, or several -> a list."""
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def picture_array(picture: Any, name: str, channels_last: bool | None = None) -> np.ndarray:
    """One picture in memory, an array or a tensor on any device, uint8 or float in [0, 1] -> uint8 (H, W, 3).

    channels_last: whether it is (H, W, 3) and not (3, H, W), where that is known. name: what an error calls it. Raises
    InputError for anything else.
    """
    pixels = _as_array(picture, name)
    if pixels.ndim != 3 or 0 in pixels.shape or CHANNELS not in (pixels.shape[0], pixels.shape[-1]):
        raise InputError(f"{name} has the shape {tuple(pixels.shape)}, expected (H, W, 3) or (3, H, W)")
    last = pixels.shape[-1] == CHANNELS if channels_last is None else channels_last
    return _as_bytes(pixels if last else pixels.transpose(1, 2, 0), name)


def _as_bytes(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"{name} is of type {pixels.dtype}, expected uint8, or float in [0, 1]")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise InputError(f"{name} has values from {low:g} to {high:g}; floats must lie in [0, 1]")
    return np.round(pixels.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)


def _as_array(picture: Any, name: str) -> np.ndarray:
    try:
        if isinstance(picture, torch.Tensor):
            picture = picture.detach().cpu()
            return (picture.float() if picture.dtype == torch.bfloat16 else picture).numpy()
        return np.asarray(picture.asnumpy() if hasattr(picture, "asnumpy") else picture)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor without values, say, or a sparse one
        raise InputError(f"{name} of type {type(picture).__name__} gives no pixels ({first_line(error)})") from error


def rgb_picture(image: Image.Image, name: str) -> Image.Image:
    """A picture of Pillow as `open_picture` gives it. name: what an error calls it."""
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
            return _from_deep(upright, name)
        if upright.mode == "RGB" and "transparency" not in upright.info:
            return upright
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        clear = upright.convert("RGBA")
        shown = Image.new("RGB", clear.size, "white")
        shown.paste(clear, mask=clear.getchannel("A"))
        return shown
    except PICTURE_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not a readable image ({first_line(error)})") from error


def _from_deep(image: Image.Image, name: str) -> Image.Image:
    """Grey values of 16 bits, or floats in [0, 1] -> RGB. Pillow itself would cut off everything above 255."""
    values = np.asarray(image, dtype=np.float32)
    white = 1.0 if image.mode == "F" else DEEP
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):
        raise InputError(f"{name}: its values go from {low:g} to {high:g}, expected 0 to {white:g}")
    return Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)).convert("RGB")


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


def resize_frames(frames: np.ndarray | torch.Tensor, height: int, width: int, device: torch.device) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> uint8 (n, 3, height, width) on `device`: antialiased bicubic, aspect not kept. A tensor is
    resized where it lies."""
    if isinstance(frames, torch.Tensor):
        return _resized(frames, height, width).to(device)
    pixels = torch.from_numpy(frames)
    if device.type == "cuda":  # from page-locked memory the copy runs beside what the caller does next
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    return _resized(pixels.to(device), height, width)


def _resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[-2:] == (height, width):
        return pixels
    size, mode = (height, width), "bicubic"
    if pixels.device.type == "cpu":  # where torch resizes bytes directly
        return F.interpolate(pixels, size=size, mode=mode, antialias=True)
    return F.interpolate(pixels.float(), size=size, mode=mode, antialias=True).round().clamp(0, 255).byte()
