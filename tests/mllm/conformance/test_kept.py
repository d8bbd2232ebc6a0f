"""A gazed model that keeps everything is its base; what it does not keep is seen nowhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.selectors.baselines import AllSelector

from ...helpers.conformance import (
    ANY_SIZE,
    EQUAL,
    PAIRS,
    QUESTION,
    SEEN,
    assert_close,
    distance,
    each,
    frames_of,
    holds,
    keep,
    keep_all,
    pixels_of,
    prepared,
    side_of,
    third,
    wrapped,
)
from ...helpers.family_models import variant_of
from ...helpers.family_reference import dense_inputs, dense_logits, dense_step_logits, greedy
from ...helpers.family_thinned import thinned_logits

KEPT = holds("all")


def assert_is_the_base(name: str, base: Any, model: am.GazedModel, frames: np.ndarray, video: Any) -> None:
    """Forward, and every step of generate."""
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    inputs = prepared(name, model, QUESTION, [video])
    assert torch.equal(inputs["input_ids"], reference["input_ids"])
    with torch.no_grad():
        assert_close(name, model(**inputs).logits, dense_logits(base, reference))
    steps = torch.stack(model.generate(**inputs, **greedy(model.preprocessing, 4)).logits, dim=1)
    assert_close(name, steps, dense_step_logits(base, reference, model.preprocessing, 4)[1])


@KEPT
@each(EQUAL)
def test_everything_kept_is_the_base(name: str) -> None:
    base, model = wrapped(name)
    frames = frames_of(name)
    assert_is_the_base(name, base, model, frames, keep_all(model, frames))


@KEPT
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["odd", "retied"])
@each(EQUAL)
def test_other_configurations(name: str, variant: str) -> None:
    base, model = wrapped(name, variant)
    frames = frames_of(name, variant)
    assert_is_the_base(name, base, model, frames, keep_all(model, frames))


@KEPT
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5])
@each(EQUAL)
def test_any_number_of_frames(name: str, count: int) -> None:
    base, model = wrapped(name)
    frames = frames_of(name, count=count)
    assert_is_the_base(name, base, model, frames, keep_all(model, frames))


class OneScale(AllSelector):
    """Keeps all of one scale, so that a video's own ladder has one."""

    def __init__(self, side: int, patch: int) -> None:
        self.grid = PatchGrid.of(str(side), patch)


@KEPT
@pytest.mark.parametrize(
    "rows, columns, count", [(2, 1, 3), pytest.param(1, 2, 4, marks=pytest.mark.slow)], ids=["portrait", "2:1"]
)
@each(ANY_SIZE)
def test_a_video_of_any_shape_by_its_own_ladder(name: str, rows: int, columns: int, count: int) -> None:
    """Through the whole pipeline: nothing is resized, because the ladder is as large as the frames."""
    shape = variant_of(name).shape
    gaze = OneScale(side_of(name), shape.patch * shape.merge)
    base, model = wrapped(name, gaze=gaze, scales=None, max_tiles=2)
    frames = frames_of(name, count=count, rows=rows, columns=columns)
    gazed = model.gaze_video(am.Video(frames, fps=2))
    assert gazed.grid.scales == ((rows * shape.side, columns * shape.side),)
    assert_is_the_base(name, base, model, frames, gazed)


# Gemma 3's odd configuration has a window shorter than the prompt, which the reference counts in the dense prompt.
THIRDS = [(name, "plain") for name in EQUAL]
THIRDS += [pytest.param(name, "odd", marks=pytest.mark.slow) for name in EQUAL if name != "gemma3"]


def thinned(name: str, base: Any, model: am.GazedModel, frames: np.ndarray, kept: torch.Tensor) -> torch.Tensor:
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    return thinned_logits(name, base, reference, kept, model.family.group)


@holds("part")
@pytest.mark.parametrize("name, variant", THIRDS)
def test_a_third_kept_is_the_base_that_cannot_see_the_rest(name: str, variant: str) -> None:
    """Positions that came from the count, rows in another order or features that went lost would show. One picture
    keeps a single patch."""
    base, model = wrapped(name, variant)
    frames, kept = frames_of(name, variant, count=4), third(name, variant)
    kept[1] = False
    kept[1, 1, -1] = True
    gazed = keep(model, frames, kept, shuffled=model.family.raster)
    inputs = prepared(name, model, QUESTION, [gazed])
    with torch.no_grad():
        found = model(**inputs).logits
    assert_close(name, found, thinned(name, base, model, frames, kept))


@holds("part")
@each(EQUAL)
def test_a_picture_that_keeps_nothing_is_left_out(name: str) -> None:
    base, model = wrapped(name)
    begun, count = (2, 4) if name in PAIRS else (2, 3)  # frames before the last picture, and with it
    frames, kept = frames_of(name, count=count), third(name, frames=count)
    kept[-1] = False
    inputs = prepared(name, model, QUESTION, [keep(model, frames, kept)])
    with torch.no_grad():
        found = model(**inputs).logits
    assert_close(name, found, thinned(name, base, model, frames[:begun], kept[:-1]))


@holds("differs")
@each(EQUAL)
def test_what_is_left_out_is_missing(name: str) -> None:
    base, model = wrapped(name)
    frames = frames_of(name, count=4)
    gazed = prepared(name, model, QUESTION, [keep(model, frames, third(name))])
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    assert gazed["input_ids"].shape[1] < reference["input_ids"].shape[1]
    with torch.no_grad():
        assert distance(model(**gazed).logits[:, -1], dense_logits(base, reference)[:, -1]) > SEEN
