"""The generated clip."""

from __future__ import annotations

import numpy as np
import pytest

from autogaze_mllm.video.synthetic import moving_scene


def clip(**settings: object) -> np.ndarray:
    return np.stack(list(moving_scene(**{"width": 320, "height": 180, "frames": 12} | settings)))  # type: ignore[arg-type]


def test_the_same_every_time() -> None:
    assert np.array_equal(clip(), clip())
    assert not np.array_equal(clip(), clip(seed=1))


@pytest.mark.parametrize(("width", "height", "frames"), [(640, 360, 3), (64, 64, 5), (100, 300, 1), (1280, 720, 2)])
def test_size(width: int, height: int, frames: int) -> None:
    made = clip(width=width, height=height, frames=frames)
    assert (made.shape, made.dtype) == ((frames, height, width, 3), np.uint8)


def test_something_moves_and_the_rest_stands_still() -> None:
    made = clip().astype(int)
    changed = np.abs(made - made[:1]).max(axis=(0, 3)) > 0
    assert 0.05 < changed.mean() < 0.6
    assert (np.abs(np.diff(made, axis=0)).max(axis=(1, 2, 3)) > 50).all()


def test_a_sign_with_the_text_turns_up_and_stays_where_it_is() -> None:
    one, other = clip(text="GATE 7").astype(int), clip(text="EXIT 3").astype(int)
    differs = np.abs(one - other).max(axis=3) > 100
    assert not differs[:3].any()
    assert differs[3:].any(axis=(1, 2)).all()
    rows, columns = differs.any(axis=0).nonzero()
    assert rows.max() - rows.min() < 30
    assert columns.max() - columns.min() < 110


def test_frames_are_made_when_asked_for() -> None:
    endless = moving_scene(width=64, height=64, frames=10**9)
    assert next(endless).shape == (64, 64, 3)
