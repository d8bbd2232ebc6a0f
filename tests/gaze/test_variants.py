"""Several ways to gaze on one decoding, and visual tokens of a video for several questions."""

from __future__ import annotations

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.gaze.pipeline import gaze_variants
from autogaze_mllm.gaze.selectors.baselines import AllSelector, RandomSelector

from ..helpers.tiny_models import FAMILIES, make

SETTINGS = am.VideoSettings(frames=12, chunk_frames=5, thumbnails=2)


def test_variants_are_what_each_is_alone(clip):
    variants = [
        (am.PixelDiffSelector(), SETTINGS),
        (RandomSelector(3), SETTINGS.changed(ratio=0.1)),
        (AllSelector(), SETTINGS.changed(thumbnail_ratio=0.5)),
    ]
    together = gaze_variants(clip, variants)
    for (selector, settings), found in zip(variants, together, strict=True):
        alone = am.gaze_video(clip, selector, settings)
        for name in ("patches", "positions", "frame_counts", "clip_frames", "timestamps", "pictures"):
            assert torch.equal(getattr(found, name), getattr(alone, name))
        assert found.settings == alone.settings and found.stats["selector"] == alone.stats["selector"]


@pytest.mark.parametrize("change", [{"frames": 8}, {"chunk_frames": 4}, {"max_tiles": 2}, {"thumbnails": 1}])
def test_variants_that_look_at_other_pictures_are_refused(change, clip):
    with pytest.raises(am.InputError, match="need the same frames, chunks, tiles and thumbnails"):
        gaze_variants(clip, [(AllSelector(), SETTINGS), (AllSelector(), SETTINGS.changed(**change))])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoded_video_stands_where_its_file_can(family, clip):
    _, model = make(family, frames=6)
    encoded = model.encode_video(clip)
    costs = model.stats
    assert {"decode", "gaze", "tower"} <= costs["seconds"].keys() and costs["frames"] == 6
    for question in ("what moves?", "what does the sign say?"):
        reply = model.ask(encoded, question, max_new_tokens=5)
        assert set(model.stats["seconds"]) == {"llm"}
        assert model.stats["visual_tokens"] == costs["visual_tokens"] == encoded.tokens
        assert reply == model.ask(clip, question, max_new_tokens=5)
    with model.disabled():
        dense = model.encode_video(clip)
        assert dense.tokens != encoded.tokens
        assert model.ask(dense, "what moves?", max_new_tokens=5) == model.ask(clip, "what moves?", max_new_tokens=5)
