"""Samples that say how their videos are looked at: one training, several ways of looking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.finetuning.data.media_store import GazedCache, MediaStore
from autogaze_mllm.finetuning.data.samples import load_samples, read_samples
from autogaze_mllm.finetuning.run import finetune

from ..helpers.files.finetune_files import box_clip, config, turns, wrapped
from ..helpers.tiny_models import tiny_gaze


@pytest.fixture
def data(tmp_path) -> Path:
    """The same video, looked at in four ways."""
    box_clip(tmp_path / "clip.mp4", (200, 30, 30), 8)
    told = (None, "all", {"name": "all", "frames": 2}, {"ratio": 0.25})
    rows = [{"video": "clip.mp4", "conversations": turns("what?", "a box"), "gaze": look} for look in told]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_sample_is_looked_at_as_it_says(data, tmp_path):
    model = wrapped(gaze="random", ratio=0.5, loss=0.0)
    model.cache = GazedCache(tmp_path / "gazed")
    samples, store = load_samples([data]), MediaStore(model, model.cache)
    assert store.prepare(samples) == {"videos": 4, "gazed": 4}
    frame = model.tower.grid.size
    patches = [store.patches(sample) for sample in samples]
    assert patches[1] == 4 * frame and patches[2] == 2 * frame
    assert patches[0] == 4 * (frame // 2) and patches[3] == 4 * (frame // 4)
    for sample, count in zip(samples, patches, strict=True):
        (medium,) = store.media(sample)
        assert len(medium.content) == count
        assert [medium.tokens] == store.tokens(sample) == [model.family.gazed_count(medium.content.picture_counts())]
    assert MediaStore(model, model.cache).prepare(samples) == {"videos": 4, "gazed": 0}
    assert torch.equal(
        store.media(samples[0])[0].content.positions, model.gaze_video(data.parent / "clip.mp4").positions
    )


def test_a_loss_holds_for_its_own_selector_alone(data, tmp_path):
    """pixel-diff stops at its own loss where the training's gaze never stops."""
    text = json.loads(data.read_text().splitlines()[0])
    data.write_text("".join(json.dumps({**text, "gaze": look}) + "\n" for look in ("pixel-diff", {"loss": 0.0})))
    model = wrapped(gaze="pixel-diff", ratio=1.0, loss=0.0)
    model.cache = GazedCache(tmp_path / "gazed")
    samples, store = load_samples([data]), MediaStore(model, model.cache)
    store.prepare(samples)
    own, never = (store.patches(sample) for sample in samples)
    assert 0 < own < never


def test_a_training_takes_them_and_keeps_its_own_settings(data, tmp_path):
    model = wrapped(gaze="random", ratio=0.5)
    result = finetune(model, config(data, tmp_path / "out", max_steps=2))
    assert result["videos"] == 4 and model.settings.ratio == 0.5
    assert am.load(tmp_path / "out", cache=False).settings.frames == 4


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ("glance", "'gaze': no selector 'glance'; known: bundled, pixel-diff, pixel-diff-raw, greedy, random, all"),
        (3, "'gaze' must be a name or an object, got 3"),
        ({"name": "all", "tile": 4}, "unknown setting 'tile'"),
        ({"ratio": 0}, "ratio must lie in (0, 1], got 0"),
    ],
)
def test_what_cannot_be_is_a_fault_of_its_row(data, look, message):
    row = json.loads(data.read_text().splitlines()[0])
    data.write_text(json.dumps({**row, "gaze": look}) + "\n")
    samples, faults = read_samples([data])
    assert not samples and [fault.row for fault in faults] == [1]
    assert faults[0].message.startswith(message)


def test_where_gaze_is_trained_it_looks_itself(data, tmp_path):
    model = wrapped(gaze=tiny_gaze())
    store = MediaStore(model, GazedCache(tmp_path / "gazed"), keep_videos=True)
    with pytest.raises(am.InputError, match="it looks at all videos itself: take 'gaze' out"):
        store.prepare(load_samples([data]))
