"""Decoding steps and a tower that are compiled give what the plain ones give."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from autogaze_mllm.common.compute import compiling
from autogaze_mllm.gaze.autogaze.decoding import device_loop
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.vision.tower import GazedSiglipVisionModel

from ...helpers.gaze_models import clip, config_dict, make, same_info, stopping_requirement
from ...helpers.towers import SCALES, gazed, siglip


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    compiling._warn.cache_clear()


def small() -> tuple[AutoGaze, Any, torch.Tensor, torch.Tensor]:
    rng = random.Random(5)
    config = config_dict(rng, num_hidden_layers=2)
    model, reference = make(config, 5)
    video = clip(config, 3, 4)
    return model, reference, video, stopping_requirement(reference, video, rng, (3, 4))


def test_steps_are_traced_once(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, without a break, and for every bound of the slots in use."""
    traced: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        traced.append("")
        return graph.forward

    monkeypatch.setattr(device_loop, "Compiled", lambda function: compiling.Compiled(function, backend))
    monkeypatch.setattr(device_loop, "SLOTS", 16)
    model, _, video, need = small()
    for _ in range(2):
        same_info(model.generate(video, 0.9, need), model.generate(video, 0.9, need, capture="compile"))
    assert len(traced) == 3  # prefill, step, choose


@pytest.mark.slow
def test_compiled_steps_choose_the_same(fresh: None, caplog: pytest.LogCaptureFixture) -> None:
    model, _, video, need = small()
    for requirement in (None, need):
        same_info(model.generate(video, 0.9, requirement), model.generate(video, 0.9, requirement, capture="compile"))
    assert "does not work here" not in caplog.text


@pytest.mark.slow
def test_compiled_tower(fresh: None, caplog: pytest.LogCaptureFixture) -> None:
    base = siglip()
    plain, fast = GazedSiglipVisionModel(base, SCALES), GazedSiglipVisionModel(base, SCALES, compile=True)
    with torch.no_grad():
        for clips, frames in ((1, 3), (2, 3), (3, 2)):
            video = gazed(plain, clips, frames)
            torch.testing.assert_close(fast.encode(video), plain.encode(video), rtol=1e-5, atol=1e-5)
    video, found = gazed(plain, 2), []
    for tower in (plain, fast):
        base.zero_grad()
        tower.encode(video).square().sum().backward()
        found.append([weight.grad.clone() for weight in base.parameters() if weight.grad is not None])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert "does not work here" not in caplog.text


def test_without_a_compiler(fresh: None, caplog: pytest.LogCaptureFixture) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise FileNotFoundError("no C++ compiler")

    double = compiling.Compiled(lambda x: 2 * x, backend)
    with caplog.at_level(logging.WARNING):
        assert [int(double(torch.tensor(n))) for n in (1, 2)] == [2, 4]
    assert len(caplog.records) == 1
    message = caplog.records[0].message
    assert message.startswith("torch.compile does not work here, going on without") and "no C++ compiler" in message
