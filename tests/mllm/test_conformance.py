"""What holds for every family: a gazed model that keeps everything is its base, and one that does not is not.

Always on logits: random models often answer one repeated token, whatever they see.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.selectors.baselines import AllSelector
from autogaze_mllm.mllm.families import FAMILIES as KNOWN

from ..helpers.family_models import FAMILIES, NAMES, build, variant_of
from ..helpers.family_reference import dense_inputs, dense_logits, dense_step_logits, greedy

SECONDS = 0.5  # between frames
QUESTION = "<video>\nWhat moves?"


def side_of(name: str, variant: str) -> int:
    return variant_of(name, variant).shape.side


def pixels_of(name: str, variant: str, frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = side_of(name, variant)
    return torch.rand(frames, 3, side, side, generator=generator)


def wrapped(name: str, variant: str = "plain", **options: Any) -> tuple[Any, am.GazedModel]:
    """A base, and the same wrapped at one scale that keeps everything."""
    base, preprocessing = build(name, variant)
    own = {"scales": str(side_of(name, variant)), "gaze": "all", "cache": False, "frame_independent": True}
    return base, am.wrap(base, processor=preprocessing, **{**own, **options})


def keep_all(model: am.GazedModel, frames: torch.Tensor) -> GazedVideo:
    """frames (T, 3, S, S) of 0 to 1."""
    normalised = model.family.pixels.normalize(frames)
    info = AllSelector().select(frames[None], model.tower.grid, 1.0, None)
    times = torch.arange(len(frames)) * SECONDS
    gazed = GazedVideo.from_info(normalised[None], info, model.tower.grid, times, tubelet=model.tower.tubelet)
    return dataclasses.replace(gazed, interval=SECONDS)


def prepared(name: str, model: am.GazedModel, text: Any, videos: Any, **options: Any) -> Any:
    chat = name.startswith("paligemma")  # whose prompts have a form of their own
    return model.prepare(text, videos, chat=chat, **options)


# LLaVA-OneVision pools dense videos, which needs whole grids; gazed ones are not pooled, so that it has no equal base.
WRAPPED = [name for name in NAMES if FAMILIES[name].model_type in KNOWN and name != "llava_onevision"]


@pytest.mark.parametrize("variant", ["plain", "odd"])
@pytest.mark.parametrize("name", WRAPPED)
def test_everything_kept_is_the_base(name: str, variant: str) -> None:
    base, model = wrapped(name, variant)
    frames = pixels_of(name, variant, 3)
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [model.family.pixels.normalize(frames)])
    inputs = prepared(name, model, QUESTION, [keep_all(model, frames)])
    assert torch.equal(inputs["input_ids"], reference["input_ids"])
    with torch.no_grad():
        found, expected = model(**inputs).logits, dense_logits(base, reference)
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-4), float((found - expected).abs().max())
    steps = torch.stack(model.generate(**inputs, **greedy(model.preprocessing, 5)).logits, dim=1)
    _, expected = dense_step_logits(base, reference, model.preprocessing, 5)
    assert torch.allclose(steps, expected, atol=2e-5, rtol=1e-4), float((steps - expected).abs().max())
