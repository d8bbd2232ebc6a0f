"""Which frames are looked at."""

from __future__ import annotations

from itertools import pairwise

import pytest

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.video.sampling import sample_frames


def test_examples() -> None:
    assert sample_frames(10, 4) == [0, 3, 6, 9]
    assert sample_frames(100, 8) == [0, 14, 28, 42, 57, 71, 85, 99]
    assert sample_frames(5, 5) == sample_frames(5, 32) == [0, 1, 2, 3, 4]
    assert sample_frames(1, 32) == [0]
    assert sample_frames(9, 1) == [0]


def test_evenly_spread() -> None:
    for total in range(2, 70):
        for wanted in range(2, total + 1):
            frames = sample_frames(total, wanted)
            gaps = [after - before for before, after in pairwise(frames)]
            assert (len(frames), frames[0], frames[-1]) == (wanted, 0, total - 1)
            assert min(gaps) >= 1
            # Consecutive numbers are apart by the mean gap, give or take the rounding at both ends.
            assert max(abs(gap - (total - 1) / (wanted - 1)) for gap in gaps) <= 1


def test_long_video() -> None:
    frames = sample_frames(108_000, 1024)
    assert (len(set(frames)), frames[0], frames[-1]) == (1024, 0, 107_999)
    assert all(isinstance(number, int) for number in frames)


@pytest.mark.parametrize("wanted", [0, -3])
def test_no_frames_wanted(wanted: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        sample_frames(10, wanted)
