"""Which frames of a video to look at."""

from __future__ import annotations

import numpy as np

from ..common.errors import InputError


def sample_frames(total: int, wanted: int) -> list[int]:
    """`wanted` numbers spread evenly over `total` frames, first and last included; all of them if there are fewer.

    round(linspace(0, total - 1, wanted)), the rule of NVILA-HD-Video, with repetitions left out.
    """
    if wanted < 1:
        raise InputError(f"the number of frames must be at least 1, got {wanted}")
    if wanted >= total:
        return list(range(total))
    return [int(number) for number in np.round(np.linspace(0, total - 1, wanted))]
