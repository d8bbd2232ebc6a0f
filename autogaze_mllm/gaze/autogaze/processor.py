"""Frame preprocessing of the gaze model (`preprocessor_config.json`).

Values come out between about -6.5 and 2.6: pixels are first mapped to [-1, 1] and then normalised with the ImageNet
statistics. That is what the released weights were trained on, so those statistics are the defaults here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from ...common.errors import InputError
from ...common.storage.files import check_arguments, find_file, output_folder, read_fields, read_json, write_json
from ...common.storage.json_text import Fields, shown
from .bundled import BUNDLED, gaze_folder
from .denoising import denoised

FILE, OWN_TYPE = "preprocessor_config.json", "AutoGazeImageProcessor"
Size = int | tuple[int, int] | dict[str, int]
LARGEST_SIDE = 1 << 14  # pixels


def _size_dict(size: Size, name: str) -> dict[str, int]:
    if isinstance(size, int):
        return {"shortest_edge": size}
    if isinstance(size, (tuple, list)):
        return {"height": int(size[0]), "width": int(size[1])}
    keys = set(size)
    if keys != {"shortest_edge"} and keys != {"height", "width"}:
        raise InputError(f"{name} needs 'shortest_edge', or 'height' and 'width', got {dict(size)}")
    return {key: int(value) for key, value in size.items()}


@dataclass
class AutoGazeImageProcessor:
    """Resize, centre crop, denoise, rescale, offset, normalise, in this order. Sizes in pixels; `resample` is Pillow's
    code. `do_denoise` is ours, off as published: see `denoising.py`."""

    do_resize: bool = True
    size: Size = field(default_factory=lambda: {"shortest_edge": 224})
    resample: int = 2
    do_center_crop: bool = False
    do_denoise: bool = False
    crop_size: Size = field(default_factory=lambda: {"height": 224, "width": 224})
    do_rescale: bool = True
    rescale_factor: float = 1 / 127.5
    offset: bool = True
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        self.size = _size_dict(self.size, "size")
        self.crop_size = _size_dict(self.crop_size, "crop_size")
        if "shortest_edge" in self.crop_size:
            self.crop_size = dict.fromkeys(("height", "width"), self.crop_size["shortest_edge"])
        if self.offset and not self.do_rescale:
            raise InputError("preprocessor: 'offset' needs 'do_rescale'")
        sides = [*self.size.values(), *self.crop_size.values()]
        if not 0 < min(sides) <= max(sides) <= LARGEST_SIDE:
            raise InputError(f"preprocessor: sides of {shown(sides)} pixels are not possible")
        if not len(self.image_mean) == len(self.image_std) == 3 or min(self.image_std) <= 0:
            raise InputError("preprocessor: image_mean and image_std need three numbers, the latter above 0")
        if self.resample not in tuple(Image.Resampling):
            raise InputError(f"preprocessor: resample {self.resample} is not one of Pillow's")

    @classmethod
    def from_pretrained(cls, source: str | Path = BUNDLED, **options: Any) -> Self:
        """From a folder or a hub repository, or "bundled".

        options: fields that are to be others than the stored ones, such as size=(392, 392) (height and width in
        pixels), and what `AutoGaze.from_pretrained` takes for the hub. Raises InputError for a missing file, one of
        another processor, and unknown arguments.
        """
        fields = [one.name for one in dataclasses.fields(cls)]
        hub = {name: value for name, value in options.items() if name not in fields}
        check_arguments(hub, fields, f"{cls.__name__}.from_pretrained")
        path = find_file(gaze_folder(source), FILE, **hub)
        assert path is not None
        stored = read_fields(path)
        kind = stored.get("image_processor_type", str, OWN_TYPE)
        if kind != OWN_TYPE:  # which would give other pixels than it is meant to, without a word
            raise InputError(f"{path}: image_processor_type is {kind}, not {OWN_TYPE}")
        found = cls.from_dict(stored.values, path)
        changes = {name: value for name, value in options.items() if name in fields}
        return dataclasses.replace(found, **changes)

    @classmethod
    def find(cls, source: str | Path, **hub: Any) -> Self | None:
        """The stored one of a gaze model's folder or repository; None where there is none."""
        path = find_file(gaze_folder(source), FILE, required=False, **hub)
        return None if path is None else cls.from_dict(read_json(path), path)

    def save_pretrained(self, folder: str | Path) -> None:
        write_json(output_folder(folder) / FILE, self.to_dict())

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], where: object = "preprocessor") -> Self:
        """Keys without a meaning here are ignored. Raises InputError for values of wrong types; where: what it names,
        the file."""
        return cls(**Fields(source, where).known(cls))

    def to_dict(self) -> dict[str, Any]:
        stored = dataclasses.asdict(self)
        if not self.do_denoise:  # as published
            del stored["do_denoise"]
        return stored | {
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "image_processor_type": OWN_TYPE,
        }

    def __call__(self, frames: Iterable[np.ndarray | Image.Image]) -> torch.Tensor:
        """uint8 frames (H, W, 3) -> (T, 3, h, w) float32."""
        pictures = torch.stack([self._resized(frame) for frame in frames])
        if self.do_denoise:
            return self.prepare(pictures[None].float() / 255)[0]
        return torch.stack([self._scaled(picture) for picture in pictures])

    def prepare(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, T, 3, H, W) with values in [0, 1], already at their size -> what the model is shown of them."""
        return self.normalize(denoised(clips.float()) if self.do_denoise else clips)

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (..., 3, H, W) with values in [0, 1], already at their size -> the model's values, on their device."""
        x = frames * (255.0 * (self.rescale_factor if self.do_rescale else 1.0))
        if self.offset:
            x -= 1
        if self.do_normalize:
            mean = torch.tensor(self.image_mean, device=x.device, dtype=x.dtype)[:, None, None]
            std = torch.tensor(self.image_std, device=x.device, dtype=x.dtype)[:, None, None]
            x = x.sub_(mean).div_(std)  # in place: clips of a large video are large themselves
        return x

    def _resized(self, frame: np.ndarray | Image.Image) -> torch.Tensor:
        """(3, h, w) uint8."""
        image = frame if isinstance(frame, Image.Image) else Image.fromarray(frame)
        image = image.convert("RGB")
        if self.do_resize:
            image = image.resize(self._target(image.width, image.height), Image.Resampling(self.resample))
        array = np.array(image)
        if self.do_center_crop:
            array = _center_crop(array, self.crop_size["height"], self.crop_size["width"])  # type: ignore[index, call-overload]
        return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)

    def _scaled(self, picture: torch.Tensor) -> torch.Tensor:
        x = (picture.double() * self.rescale_factor).float() if self.do_rescale else picture.float()
        if self.offset:
            x -= 1
        if self.do_normalize:
            x = (x - torch.tensor(self.image_mean)[:, None, None]) / torch.tensor(self.image_std)[:, None, None]
        return x

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after the resize."""
        size = self.size
        assert isinstance(size, dict)
        if "height" in size:
            return size["width"], size["height"]
        short = size["shortest_edge"]
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short


def _center_crop(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) -> (height, width, 3), zeros where the image is smaller."""
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    result = np.zeros((height, width, array.shape[2]), dtype=array.dtype)
    source = array[max(top, 0) : top + height, max(left, 0) : left + width]
    row, column = max(-top, 0), max(-left, 0)
    result[row : row + source.shape[0], column : column + source.shape[1]] = source
    return result
