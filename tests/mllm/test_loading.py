"""A saved folder, or a base model: told apart in one place; and a selector that takes another one's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.mllm.loading import BUNDLED_FOLDER, base_source, is_saved, load_or_wrap
from autogaze_mllm.mllm.tiny import tiny_model

from ..helpers.tiny_models import make, tiny_gaze


def test_a_saved_model_comes_back_as_it_was_and_a_base_model_is_wrapped(tmp_path: Path) -> None:
    base, wrapped = make("llava_onevision", "random", ratio=0.4)
    wrapped.save_pretrained(tmp_path / "saved")
    base.save_pretrained(tmp_path / "base")
    wrapped.preprocessing.save_pretrained(tmp_path / "base")
    assert is_saved(tmp_path / "saved") and is_saved("bundled") and is_saved(BUNDLED_FOLDER)
    assert (
        not is_saved(tmp_path / "base") and not is_saved(tmp_path / "nowhere") and not is_saved("some-org/some-model")
    )

    again = load_or_wrap(tmp_path / "saved", cache=False, frames=3)
    assert again.settings == wrapped.settings.changed(frames=3) and isinstance(again.gaze, am.RandomSelector)
    fresh = load_or_wrap(tmp_path / "base", "all", settings=am.preset("fast"), cache=False, frames=3)
    assert fresh.settings == am.preset("fast").changed(frames=3) and isinstance(fresh.gaze, am.AllSelector)
    assert load_or_wrap(tmp_path / "saved", settings=am.preset("fast"), cache=False).settings == am.preset("fast")


def test_where_the_base_of_a_model_lies(tmp_path: Path) -> None:
    _, wrapped = make("llava")
    wrapped.save_pretrained(tmp_path)
    assert base_source(tmp_path) == str(tmp_path / "base")
    assert base_source("some-org/some-model") == "some-org/some-model"
    assert Path(base_source("bundled")) == BUNDLED_FOLDER and not is_saved(tmp_path / "base")
    told = json.loads((tmp_path / "autogaze_mllm.json").read_text())
    (tmp_path / "autogaze_mllm.json").write_text(json.dumps({**told, "tuned": {}}))
    with pytest.raises(am.InputError, match="holds only what was trained"):
        base_source(tmp_path)


def test_any_selector_takes_any_others_place(clip: Path) -> None:
    base, model = make("llava", tiny_gaze(), frames=4)
    gaze = model.gaze
    names = [name for name, _ in model.named_parameters()]
    assert any(name.startswith("gaze.") for name in names)
    kept = model.gaze_video(clip).positions
    for plain in (am.PixelDiffSelector(), am.AllSelector()):
        model.gaze = plain
        assert model.gaze is plain and [name for name, _ in model.named_parameters()] == [
            f"base.{name}" for name, _ in base.named_parameters()
        ]
        assert model.gaze_video(clip).stats["selector"] == plain.name
    model.gaze = gaze
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model.gaze_video(clip).positions, kept)


def test_what_does_not_fit_is_refused_when_it_is_put_there() -> None:
    base, processor = tiny_model("llava", image_size=64)
    model = am.wrap(base, "all", processor=processor, scales="16+32+64", cache=False)
    with pytest.raises(am.InputError, match="has 3 scales, the gaze model 2"):
        model.gaze = tiny_gaze()
    with pytest.raises(am.InputError, match="not a selector"):
        model.gaze = "pixel-diff"
    assert isinstance(model.gaze, am.AllSelector)
