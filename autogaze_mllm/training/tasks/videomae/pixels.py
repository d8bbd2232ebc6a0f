"""What becomes of pixels before a VideoMAE sees them, as a `preprocessor_config.json` says it.

The published task reads the file of the ViT-MAE that it was made from by transformers' video processor for ViViT. What
the file does not say is that class's default: pixels are mapped to [-1, 1] even where the file, written for another
class, means [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....common.errors import InputError
from ....gaze.autogaze.processor import AutoGazeImageProcessor

DEFAULTS: dict[str, Any] = {
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "rescale_factor": 1 / 127.5,
    "offset": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "offset", "do_normalize")


def published_processor(stored: Mapping[str, Any], side: int, where: object) -> AutoGazeImageProcessor:
    """stored: the file's keys; side: of the largest scale, which the short side of a picture is brought to. where: what
    an error names, the file."""
    values = dict(stored)
    for key in SWITCHES:  # null is as good as false
        if key in values and values[key] is None:
            values[key] = False
    values = {key: value for key, value in values.items() if value is not None}
    for key in ("image_mean", "image_std"):  # one number stands for all channels
        if isinstance(values.get(key), (int, float)) and not isinstance(values[key], bool):
            values[key] = [float(values[key])] * 3
    try:
        return AutoGazeImageProcessor.from_dict(DEFAULTS | values | {"size": {"shortest_edge": side}}, where)
    except InputError as error:
        raise InputError(str(error) if str(where) in str(error) else f"{where}: {error}") from error
