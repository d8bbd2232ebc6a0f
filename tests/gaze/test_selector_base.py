"""What a selector answers besides selecting: grid, identity, threads, and how it is moved, stored and had again."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.grid import DEFAULT_GRID
from autogaze_mllm.gaze.selector_registry import NAMED, load_selector, stored_selector
from autogaze_mllm.gaze.selectors.base import (
    PIXEL_LOSS,
    PUBLISHED_LOSS,
    Selector,
    as_selector,
    selector_name,
    stop_rule,
)

from ..helpers.paths import ROOT
from ..helpers.selections import SELECTORS, tiny_autogaze

# Where training needs the gaze model itself: its weights, its pixels, or draws from it.
NEEDS_THE_MODEL = {
    "training/reconstruction/models.py",
    "training/reconstruction/selectors.py",
    "finetuning/parts.py",
    "finetuning/trainer.py",
    "finetuning/rollouts.py",
}


class OnlySelects:
    """An object of a user's own, with nothing that the package asks for but `select`."""

    def select(self, frames, grid, ratio, loss):  # type: ignore[no-untyped-def]
        return am.PixelDiffSelector().select(frames, grid, ratio, loss)


ANSWERS = {
    "pixel-diff": ("pixel-diff", DEFAULT_GRID, 0.05, PIXEL_LOSS, True),
    "pixel-diff-raw": ("pixel-diff-raw", DEFAULT_GRID, 0.05, PIXEL_LOSS, True),
    "random": ("random", DEFAULT_GRID, None, "", True),
    "all": ("all", DEFAULT_GRID, None, "", True),
    "AutoGaze": ("AutoGaze", am.PatchGrid.of("32+64", 16), 0.7, PUBLISHED_LOSS, True),
    "OnlySelects": ("OnlySelects", DEFAULT_GRID, None, "", False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    selector = as_selector({**SELECTORS, "OnlySelects": OnlySelects()}[name])
    assert isinstance(selector, Selector)
    found = selector_name(selector), selector.grid, selector.default_loss, selector.loss_unit, selector.thread_safe
    assert found == ANSWERS[name]
    assert (selector.identity() is None) == (name == "OnlySelects")
    assert (as_selector(selector) is selector) and load_selector(selector) is selector


def test_identity_is_of_what_decides_the_result() -> None:
    model, same, other_weights, other_config, other_pixels = (tiny_autogaze() for _ in range(5))
    with torch.no_grad():
        other_weights.gazing_model.connector.pos_embed.add_(0.1)
    other_config.config = dataclasses.replace(other_config.config, max_num_frames=3)
    other_pixels.processor.image_mean = [0.1, 0.2, 0.3]
    assert model.identity() == same.identity()
    others = [other_weights, other_config, other_pixels, am.AllSelector()]
    others += [
        am.PixelDiffSelector(),
        am.PixelDiffSelector(noise_floor=False),
        am.RandomSelector(1),
        am.RandomSelector(2),
    ]
    told = [json.dumps(selector.identity(), sort_keys=True) for selector in (model, *others)]
    assert len(set(told)) == len(told)
    assert am.RandomSelector(1).identity() == am.RandomSelector(1).identity()


@pytest.mark.parametrize("kind", [am.AllSelector, am.RandomSelector, am.PixelDiffSelector, am.AutoGaze])
def test_a_class_that_derives_makes_its_own_promises(kind: type[Selector]) -> None:
    class Later(kind):  # type: ignore[misc,valid-type]
        default_loss = 0.3

    class Careful(Later):
        thread_safe = True

        def identity(self) -> dict[str, str]:
            return {"name": "careful"}

    assert not Later.thread_safe and Later().identity() is None
    assert Careful.thread_safe and Careful().identity() == {"name": "careful"}
    assert kind.thread_safe and kind().identity() is not None


def test_a_selector_of_ones_own_that_says_what_it_is_is_cached(clip: Path, tmp_path: Path) -> None:
    from autogaze_mllm.mllm.tiny import tiny_model

    class Own(Selector):
        name = "own"

        def __init__(self, ratio: float) -> None:
            self.ratio = ratio

        def identity(self) -> dict[str, object]:
            return {"name": self.name, "ratio": self.ratio}

        def select(self, frames, grid, ratio, loss):  # type: ignore[no-untyped-def]
            return am.RandomSelector().select(frames, grid, self.ratio, loss)

    base, processor = tiny_model("llava", image_size=64)
    model = am.wrap(base, Own(0.2), processor=processor, cache=tmp_path, frames=4)
    first = model.gaze_video(clip)
    assert "from_cache" not in first.stats and model.gaze_video(clip).stats["from_cache"] == 1
    model.gaze = Own(0.4)
    other = model.gaze_video(clip)
    assert "from_cache" not in other.stats and len(other) > len(first)


def test_what_only_selects_can_stand_wherever_a_selector_can(clip: Path, tmp_path: Path) -> None:
    from autogaze_mllm.mllm.tiny import tiny_model

    settings = am.VideoSettings(frames=4, ratio=0.2, loss=0.05)
    gazed = am.gaze_video(clip, OnlySelects(), settings)
    assert gazed.stats["selector"] == "OnlySelects"
    assert torch.equal(gazed.positions, am.gaze_video(clip, "pixel-diff", settings).positions)
    assert stop_rule(None, OnlySelects(), settings) is None and stop_rule(0.1, OnlySelects(), settings) == 0.1
    base, processor = tiny_model("llava", image_size=64)
    selector = OnlySelects()
    model = am.wrap(base, selector, processor=processor, cache=tmp_path / "cache", frames=4)
    assert model.gaze is selector and isinstance(model.ask(clip, "what?", max_new_tokens=1), str)
    assert not model.cache.entries()  # type: ignore[union-attr]
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(am.InputError, match=r"OnlySelects.*gaze="):
        am.load(tmp_path / "model")


def test_what_cannot_select_is_refused() -> None:
    for found in (42, "pixel-diff", am.AutoGaze, None):
        with pytest.raises(am.InputError, match="not a selector"):
            as_selector(found)  # type: ignore[arg-type]


def test_moving_leaves_the_one_that_was_given_as_it_is() -> None:
    model = tiny_autogaze()
    assert model.moved("cpu", torch.float32) is model and model.moved(None, None) is model
    moved = model.moved("cpu", torch.bfloat16)
    assert (moved.dtype, model.dtype) == (torch.bfloat16, torch.float32)
    plain = am.RandomSelector(3)
    assert plain.moved("meta", torch.bfloat16) is plain


@pytest.mark.parametrize("name", ["pixel-diff", "pixel-diff-raw", "random", "all", "AutoGaze"])
def test_what_is_stored_comes_back(name: str, tmp_path: Path) -> None:
    selector = am.RandomSelector(5) if name == "random" else as_selector(SELECTORS[name])
    entry = json.loads(json.dumps(selector.store(tmp_path)))
    again = as_selector(load_selector(stored_selector(entry, tmp_path / "autogaze_mllm.json")))
    assert type(again) is type(selector) and again.identity() == selector.identity()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "random", "seed": "x"}, "'seed' must be a whole number, got 'x'"),
        ({"name": "random"}, "'seed' is missing"),
        ({"name": "pixel-diff", "noise_floor": "no"}, "'noise_floor' must be true or false"),
        ({"name": "greedy", "least_gain": [1]}, "'least_gain' must be a finite number or null"),
        ({"name": "greedy", "least_gain": -1}, "least_gain must be 0 or more"),
    ],
)
def test_what_is_stored_of_a_selector_is_checked(entry: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=f"autogaze_mllm.json: .*{said}"):
        stored_selector(entry, tmp_path / "autogaze_mllm.json")


@pytest.mark.parametrize("entry", [{"name": "pixel-diff"}, {"name": "pixel-diff", "noise_floor": False}], ids=str)
def test_what_was_saved_before_pixel_diff_had_a_noise_floor_stays_without(
    entry: dict[str, Any], tmp_path: Path
) -> None:
    """In models, and in caches, where such entries were identities: the raw rule finds its own, the new one neither."""
    raw = load_selector("pixel-diff-raw")
    found = stored_selector(entry, tmp_path / "autogaze_mllm.json")
    assert isinstance(found, am.PixelDiffSelector) and not found.noise_floor
    assert selector_name(found) == "pixel-diff-raw" and found.identity() == as_selector(raw).identity()
    assert as_selector(raw).identity() == {"name": "pixel-diff", "noise_floor": False}
    assert am.PixelDiffSelector().identity() not in (entry, {"name": "pixel-diff", "noise_floor": True})


def test_names_in_the_registry_are_those_that_selectors_give_themselves() -> None:
    assert {name: selector_name(load_selector(name)) for name in NAMED} == {name: name for name in NAMED}


def test_a_grid_that_the_gaze_model_cannot_select_on_is_refused() -> None:
    tiny_autogaze().check_grid(am.PatchGrid.of("64+128", 16))
    with pytest.raises(am.InputError, match="3 scales, the gaze model 2"):
        tiny_autogaze().check_grid(am.PatchGrid.of("32+64+128", 16))
    am.PixelDiffSelector().check_grid(am.PatchGrid.of("32+64+128", 16))


def asks_for_the_model(node: ast.AST) -> bool:
    """Whether this is a call isinstance(..., AutoGaze), alone or among others."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"):
        return False
    return any(isinstance(part, ast.Name) and part.id == "AutoGaze" for part in ast.walk(node.args[1]))


def test_nobody_asks_whether_a_selector_is_a_gaze_model() -> None:
    """A selector answers for itself, so that another one can take the gaze model's place anywhere."""
    package = ROOT / "autogaze_mllm"
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(asks_for_the_model(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert asking == NEEDS_THE_MODEL
