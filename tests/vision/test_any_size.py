"""Rotary positions of coarse scales, the one choice that towers of any size leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.gaze.cache import VideoCache

from ..helpers.families.models import build


def features(model: am.GazedModel, gazed: am.GazedVideo, positions: str) -> torch.Tensor:
    tower: Any = model.tower
    tower.coarse_positions = positions
    with torch.no_grad():
        return tower.encode(gazed)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "video_llama_3"])
def test_coarse_positions_matter_where_there_are_coarse_scales(name: str, clip: Path) -> None:
    for scales, differ in (("64", False), ("32+64", True)):
        base, preprocessing = build(name)
        model = am.wrap(base, "all", processor=preprocessing, scales=scales, frames=2, cache=False)
        gazed = model.gaze_video(clip)
        native, fine = (features(model, gazed, positions) for positions in ("native", "fine"))
        assert torch.allclose(native, fine, atol=1e-5) is not differ


def test_cached_tokens_are_those_of_the_positions_that_they_were_made_with(clip: Path, tmp_path: Path) -> None:
    base, preprocessing = build("qwen3_vl")
    model = am.wrap(base, "all", processor=preprocessing, scales="32+64", frames=2, cache=VideoCache(tmp_path))
    tower: Any = model.tower
    found = []
    for positions, cached in (("native", 0), ("fine", 0), ("native", 1)):
        tower.coarse_positions = positions
        found.append(model.encode_video(clip).content)
        assert model.stats["from_cache"] == cached
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1], atol=1e-4)


def test_coarse_positions_are_a_choice_that_is_saved(tmp_path):
    base, preprocessing = build("qwen3_vl")
    with pytest.raises(am.InputError, match="native or fine, got 'rough'"):
        am.wrap(base, "all", processor=preprocessing, coarse_positions="rough")
    model = am.wrap(base, "all", processor=preprocessing, coarse_positions="fine", cache=False)
    model.save_pretrained(tmp_path)
    assert am.load(tmp_path, cache=False).tower.coarse_positions == "fine"
    llava, preprocessing = build("llava")
    with pytest.raises(am.InputError, match="no rotary positions"):
        am.wrap(llava, "all", processor=preprocessing, coarse_positions="fine")
