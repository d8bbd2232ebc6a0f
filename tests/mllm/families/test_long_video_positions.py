"""Where text goes on after a video that is longer than its picture is wide: one switch, of Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import autogaze_mllm as am

from ...helpers.families.models import build


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_text_after_a_long_video(name: str) -> None:
    base, preprocessing = build(name)
    model = am.wrap(base, "all", processor=preprocessing, scales="56", cache=False)
    grid = model.tower.grid
    moments = 12  # tubelets of 2 x 2 tokens
    gazed = am.GazedVideo(
        torch.randn(4 * moments, 2 * 3 * grid.patch**2),
        torch.arange(4).repeat(moments),
        torch.full((moments,), 4),
        torch.tensor([moments]),
        grid,
        torch.arange(moments) * 1.0,
        tubelet=2,
        interval=1.0,
    )
    inputs = model.prepare("Before.<video>After <video>it.", [gazed, dataclasses.replace(gazed)], chat=False)
    family, ids = model.family, inputs["input_ids"]

    def positions() -> torch.Tensor:
        return family.llm_inputs(ids, inputs["attention_mask"], inputs["media"], None)["position_ids"][1:, 0]

    visual = family.is_visual(ids)[0]
    installed = positions()
    family.text_after_video = "published"  # type: ignore[attr-defined]
    published = positions()
    first = int(visual.long().argmax())
    end = first + 4 * moments
    assert torch.equal(installed[:, :end], published[:, :end])
    assert int(installed[:, end].max()) <= int(installed[:, first:end].max())  # text among the video's own times
    assert int(published[:, end].max()) == int(published[:, first:end].max()) + 1
    rest = published[:, end:] - installed[:, end:]
    assert bool((rest[:, 0] > 0).all()) and bool((rest.diff(dim=1) >= 0).all())  # and more after the second video
    assert int(rest[0, -1]) == 2 * int(rest[0, 0])
