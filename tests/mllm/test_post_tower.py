"""Dropping tokens after the tower: the rival of gaze, in the same sweep."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.selectors.post_tower import tokens_to_keep
from autogaze_mllm.gaze.token_map import TokenMap

from ..helpers.families.models import build, write_folder
from ..helpers.tiny_models import make


def token_map(frames: int, each: int, thumbnails: int = 0) -> TokenMap:
    pictures = frames + thumbnails
    positions = torch.arange(each).repeat(pictures)
    grid = PatchGrid.of("32", 16)
    return TokenMap(
        [each] * pictures,
        [0.5 * n for n in range(pictures)],
        positions,
        torch.zeros_like(positions),
        grid,
        thumbnails=thumbnails,
    )


def test_the_first_frame_stays_and_then_what_changed_most():
    still = torch.eye(4)
    moved = still.clone()
    moved[2] = torch.tensor([1.0, 1.0, 0.0, 0.0])  # at a right angle to what was there
    moved[1] = torch.tensor([0.0, 1.0, 0.2, 0.0])  # a little different
    tokens = torch.cat([still, moved, moved])
    for share, kept in (
        (0.1, [0, 1, 2, 3]),
        (5 / 12, [0, 1, 2, 3, 6]),
        (0.5, [0, 1, 2, 3, 5, 6]),
        (1.0, list(range(12))),
    ):
        assert tokens_to_keep(tokens, token_map(3, 4), share).nonzero().flatten().tolist() == kept
    left = token_map(3, 4).kept(tokens_to_keep(tokens, token_map(3, 4), 0.5))
    assert left.counts == [4, 2, 0] and left.positions.tolist() == [0, 1, 2, 3, 1, 2]


def test_thumbnails_stay_whole_and_joined_tokens_are_refused():
    tokens = torch.eye(4).repeat(4, 1)
    kept = tokens_to_keep(tokens, token_map(3, 4, thumbnails=1), 0.2)
    assert kept.tolist() == [True] * 4 + [False] * 8 + [True] * 4
    with pytest.raises(am.InputError, match="joins or adds tokens"):
        tokens_to_keep(tokens[:5], token_map(3, 4), 0.5)


def test_tower_sees_everything_and_the_llm_its_share(clip):
    _, model = make("llava", "post-tower", frames=6, ratio=0.5)
    model.ask(clip, "what moves?", max_new_tokens=3)
    whole = model.tower.grid.counts[-1]
    assert model.stats["patches"] == 6 * whole
    assert model.stats["visual_tokens"] == 3 * whole


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_drops_whole_tubelets_with_their_time(name, clip, tmp_path):
    base, preprocessing = build(name)
    model = am.wrap(base, "post-tower", processor=preprocessing, frames=6, max_tiles=1, ratio=0.4, cache=tmp_path)
    first = model.ask(clip, "what?", max_new_tokens=3)
    assert model.stats["visual_tokens"] == round(0.4 * 3 * 196)
    assert model.ask(clip, "what?", max_new_tokens=3) == first
    assert model.stats["from_cache"] == 1 and model.stats["visual_tokens"] == round(0.4 * 3 * 196)


def test_kept_with_the_video_and_refused_where_counts_come_first(clip, tmp_path):
    _, model = make("llava", "post-tower", frames=4, ratio=(0.5,) * 16)
    gazed = model.gaze_video(clip)
    gazed.save(tmp_path / "one.safetensors")
    again = am.GazedVideo.load(tmp_path / "one.safetensors")
    assert again.keep_after == gazed.keep_after == 0.5
    answer = model.ask(gazed, "what?", max_new_tokens=3)
    assert model.ask(again, "what?", max_new_tokens=3) == answer
    with pytest.raises(am.InputError, match="dropped after the tower"):
        model.gazed_media(again)
    assert model.gazed_media(dataclasses.replace(again, keep_after=None)).tokens == 4 * model.tower.grid.counts[-1]


def test_before_and_after_the_tower_in_one_sweep(tmp_path):
    write_folder("qwen3_vl", tmp_path / "base")
    command = ["eval", "hlvid", "--made-up", tmp_path / "data", "--model", tmp_path / "base", "--out", tmp_path / "run"]
    command += ["--limit", 2, "--gaze", "random", "--frames", 6, "--max-tiles", 1]
    assert main([*map(str, command), "--sweep", "gaze=post-tower,random; ratio=0.4"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    rows = {entry["name"]: entry for entry in report["sweep"]}
    after, before = rows["gaze=post-tower_ratio=0.4"], rows["gaze=random_ratio=0.4"]
    assert after["visual_tokens"] == round(0.4 * 3 * 196)
    assert before["visual_tokens"] == round(before["patches_kept"] * 3 * 265)
    assert 0.4 < before["patches_kept"] < 0.7 < after["patches_kept"]
