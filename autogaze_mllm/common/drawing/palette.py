"""The colours of every picture: patches by scale in overlays and sheets, lines in plots, maps of how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.colors import LinearSegmentedColormap

Colour = tuple[int, int, int]

# On dark ground. The first four are the scales of the released gaze model, coarse to fine.
COLOURS: list[Colour] = [
    (255, 176, 59),
    (122, 204, 108),
    (76, 164, 255),
    (240, 98, 160),
    (186, 130, 255),
    (90, 220, 220),
    (240, 120, 90),
    (170, 170, 178),
]
ON_WHITE = 0.78  # brightness of the same hues where the ground is white, so that thin lines and letters can be read
HEAT: list[Colour] = [(12, 12, 24), (128, 52, 110), (240, 120, 90), (255, 214, 120), (255, 255, 240)]


def line_colours() -> list[str]:
    """The palette for white ground, as matplotlib takes it."""
    return ["#" + "".join(f"{round(part * ON_WHITE):02x}" for part in colour) for colour in COLOURS]


def heat(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape (...) -> colours (..., 3) uint8, dark to light."""
    stops = np.linspace(0, 1, len(HEAT))
    parts = [np.interp(values, stops, [colour[channel] for colour in HEAT]) for channel in range(3)]
    return np.stack(parts, axis=-1).round().astype(np.uint8)


def heat_colours(*, see_through: bool = False) -> LinearSegmentedColormap:
    """The same for matplotlib. see_through: what is low lets the picture beneath be seen."""
    from matplotlib.colors import LinearSegmentedColormap

    places = np.linspace(0, 1, 64)
    alpha = np.clip(1.4 * places, 0, 0.68) if see_through else np.ones_like(places)
    colours = np.concatenate([heat(places) / 255, alpha[:, None]], axis=1)
    return LinearSegmentedColormap.from_list("heat", colours.tolist())
