"""A gazed model that keeps everything is its base; what it does not keep is seen nowhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.pixels import resize_bicubic
from autogaze_mllm.gaze.gazed_video import GazedVideo

from ...helpers.families.conformance import (
    ANY_SIZE,
    EQUAL,
    PAIRS,
    QUESTION,
    SEEN,
    OneScale,
    assert_close,
    copy_of,
    distance,
    each,
    frames_of,
    holds,
    keep,
    keep_all,
    pixels_of,
    prepared,
    shape_of,
    side_of,
    third,
    wrapped,
)
from ...helpers.families.reference import dense_inputs, dense_logits, dense_step_logits, greedy
from ...helpers.families.thinned import thinned_logits

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


@KEPT
@pytest.mark.slow
@each(EQUAL)
def test_in_bfloat16_it_is_as_near_to_the_base_as_the_base_is_to_itself(name: str) -> None:
    base, preprocessing = copy_of(name)
    frames = frames_of(name)
    scales = str(side_of(name))
    model = am.wrap(base, "all", processor=preprocessing, scales=scales, frame_independent=True, cache=False)
    reference = dense_inputs(name, base, preprocessing, QUESTION, [pixels_of(model, frames)])
    exact = dense_logits(base, reference)
    model.to(torch.bfloat16)
    low = {key: value.bfloat16() if value.is_floating_point() else value for key, value in reference.items()}
    coarse = dense_logits(base, low)
    with torch.no_grad():
        found = model(**prepared(name, model, QUESTION, [keep_all(model, frames)])).logits
    assert found.dtype is torch.bfloat16
    assert float((found - exact).abs().mean()) <= 1.5 * float((coarse - exact).abs().mean()) + 1e-3


@KEPT
@pytest.mark.parametrize(
    "rows, columns, count", [(2, 1, 3), pytest.param(1, 2, 4, marks=pytest.mark.slow)], ids=["portrait", "2:1"]
)
@each(ANY_SIZE)
def test_a_video_of_any_shape_by_its_own_ladder(name: str, rows: int, columns: int, count: int) -> None:
    """Through the whole pipeline: nothing is resized, because the ladder is as large as the frames."""
    shape = shape_of(name)
    base, model = wrapped(name, gaze=OneScale(shape), scales=None, max_tiles=2)
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


def of_scale(gazed: GazedVideo, number: int) -> GazedVideo:
    """What is kept of one scale."""
    picture = torch.repeat_interleave(torch.arange(len(gazed.frame_counts)), gazed.frame_counts)
    rows = gazed.grid.locate(gazed.positions)[0] == number
    counts = torch.bincount(picture[rows], minlength=len(gazed.frame_counts))
    return dataclasses.replace(gazed, patches=gazed.patches[rows], positions=gazed.positions[rows], frame_counts=counts)


@holds("scales")
@each(EQUAL)
def test_the_finest_of_two_scales_is_the_base(name: str) -> None:
    side = side_of(name)
    base, model = wrapped(name, scales=f"{side // 2}+{side}")
    frames = frames_of(name)
    assert_is_the_base(name, base, model, frames, of_scale(keep_all(model, frames), 1))


@holds("scales")
@each(ANY_SIZE)
def test_a_coarse_scale_is_a_small_picture_to_the_tower(name: str) -> None:
    side = side_of(name)
    _, model = wrapped(name, scales=f"{side // 2}+{side}")
    frames = frames_of(name)
    inputs = prepared(name, model, QUESTION, [of_scale(keep_all(model, frames), 0)])
    small = resize_bicubic(pixels_of(model, frames), side // 2, side // 2)
    dense = model.family.dense_video(small, [0.0, 0.5, 1.0])
    with torch.no_grad():
        embedded = model.embed(inputs["input_ids"], inputs["media"])
        found = embedded[model.family.is_visual(inputs["input_ids"])]
        assert_close(name, found, model.family.dense_features(dense.content))


@holds("scales")
@each(EQUAL)
def test_two_scales_are_more_than_one(name: str) -> None:
    """Patches of one scale see those of the other, where the tower lets them."""
    side = side_of(name)
    _, model = wrapped(name, scales=f"{side // 2}+{side}")
    whole = keep_all(model, frames_of(name))
    with torch.no_grad():
        both, fine = (
            model(**prepared(name, model, QUESTION, [video])).logits[:, -1] for video in (whole, of_scale(whole, 1))
        )
    assert distance(both, fine) > SEEN


@holds("scales")
@each(PAIRS)
def test_tiles_stand_where_they_lie_in_the_whole_picture(name: str) -> None:
    """Positions of a video that is cut into tiles are those of the same one as a whole, and so is their order."""
    frames, found = frames_of(name, rows=2, columns=3), []
    for options in ({}, {"gaze": OneScale(shape_of(name)), "scales": None}):
        _, model = wrapped(name, max_tiles=6, **options)
        inputs = prepared(name, model, QUESTION, [am.Video(frames, fps=2)])
        ids, media = inputs["input_ids"], inputs["media"]
        positions = model.family.llm_inputs(ids, inputs["attention_mask"], media, None)["position_ids"][1:, 0]
        visual = model.family.is_visual(ids[0])
        found.append((media[0][0].token_map.tiles, positions[:, visual].T.tolist(), positions[:, ~visual]))
    (tiles, cut, text), (one, whole, expected) = found
    assert (tiles, one) == ((3, 2), (1, 1))
    assert cut == whole
    assert torch.equal(text, expected)


@holds("scales")
@each(ANY_SIZE)
def test_a_frame_chosen_as_a_thumbnail_keeps_a_coarse_scale_whole(name: str) -> None:
    """Towers that take any size see whole frames anyway: in chosen ones nothing of a coarse scale is left out."""
    video = am.Video(frames_of(name, count=8, columns=2), fps=2)
    found = []
    for thumbnails in (0, 2):
        _, model = wrapped(
            name, gaze="random", ratio=0.1, loss=0, scales=None, max_tiles=2, enlarge=True, thumbnails=thumbnails
        )
        gazed = model.gaze_video(video)
        step = torch.repeat_interleave(torch.arange(len(gazed.frame_counts)), gazed.frame_counts)
        found.append((gazed, set(zip(step.tolist(), gazed.positions.tolist(), strict=True))))
    (_, gazed_only), (gazed, kept) = found
    grid, tubelet = gazed.grid, gazed.tubelet
    assert (
        gazed_only < kept
        and gazed.grid.scales[-1][1] == 2 * gazed.grid.scales[-1][0]
        and gazed.stats["thumbnails"] == 2
        and gazed.thumbnails == 0
    )
    square = model.tower.cells[-1][0] * model.tower.cells[-1][1]
    scale = max(number for number, count in enumerate(grid.counts) if count <= square)
    whole = range(grid.offsets[scale], grid.offsets[scale + 1])
    shown = {(step, place) for step in (0, 4 // tubelet) for place in whole}  # frames 0 and 4 of 8
    assert kept == gazed_only | shown
    with pytest.raises(am.InputError, match="leave thumbnail_ratio and thumbnail_loss as they are"):
        wrapped(name, thumbnails=2, thumbnail_ratio=0.5)[1].gaze_video(video)


def test_thumbnails_make_no_video_longer_or_shorter() -> None:
    """SmolVLM's text says how long a video is; thumbnails are shown after all frames, with times of their own."""
    for thumbnails in (0, 2):
        _, model = wrapped("smolvlm", thumbnails=thumbnails)
        (item,) = prepared("smolvlm", model, QUESTION, [am.Video(frames_of("smolvlm", count=8), fps=2)])["media"][0]
        assert "from a 0:00:04 [H:MM:SS] video" in item.layout[0]
