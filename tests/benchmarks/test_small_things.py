"""benchmarks/small_things.py: what is drawn stands where it is said to, and is counted where it is kept."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from autogaze_mllm.gaze.selector_registry import load_selector

from ..helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import small_things

FRAMES = 8


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, list]:
    """A grey clip (1, T, 3, 224, 224) in [0, 1] with its things, and their boxes."""
    things = small_things.Things("clip.mp4", FRAMES)
    grey = np.full((224, 224, 3), 128, np.uint8)
    frames, where = zip(*(things.draw(grey, number) for number in range(FRAMES)), strict=True)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None].float() / 255, list(where)


def test_boxes_hold_what_was_drawn(drawn):
    seen, where = drawn
    assert sum("print" in boxes for boxes in where) == small_things.STANDS
    for frame, boxes in zip(seen[0], where, strict=True):
        changed = (frame - 128 / 255).abs().amax(dim=0) > 0.01
        inside = torch.zeros_like(changed)
        for left, top, right, bottom in boxes.values():  # the print has a margin of three pixels
            x, y = (slice(round(224 * low) - 4, round(224 * high) + 5) for low, high in ((left, right), (top, bottom)))
            inside[y, x] = True
        assert changed.any() and not (changed & ~inside).any()


def test_what_covers_little_of_a_cell_does_not_count():
    cells = small_things.cells((0.0, 0.0, 0.6, 0.5), 2)
    assert cells.tolist() == [[True, False], [False, False]]  # the second cell is covered by a fifth


def test_all_is_kept_and_a_selector_that_sees_keeps_more_than_chance(drawn):
    seen, where = drawn
    everything = small_things.measure(load_selector("all"), seen, where, 1.0)
    assert (everything["print"], everything["ball"]) == (1.0, 1.0)
    sees, blind = (small_things.measure(load_selector(name), seen, where, 0.05) for name in ("pixel-diff", "random"))
    assert sees["print"] > blind["print"] and sees["ball"] > blind["ball"]
