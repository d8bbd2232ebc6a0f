"""Decoding steps that are captured, and a tower that is compiled, give what the plain ones give."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autogaze_mllm import compiling
from autogaze_mllm.errors import InputError
from autogaze_mllm.gaze import device_frames, generation
from autogaze_mllm.gaze.device_frames import DeviceFrames, Recorder
from autogaze_mllm.gaze.model import AutoGaze
from autogaze_mllm.vision.tower import GazedSiglipVisionModel

from .test_gaze_engine import same_info, same_state
from .test_gaze_reference import clip, config_dict, make, stopping_requirement
from .test_tower import SCALES, gazed, siglip


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on the CPU: the operations that ran, repeated with the same numbers at the same addresses,
    whatever the host thinks meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Tapes(Recorder):
    """Recording runs the function, so what it changes is put back, as if it had only been recorded."""

    def __init__(self, engine: DeviceFrames) -> None:
        super().__init__(torch.device("cpu"))
        self.engine, self.replayed = engine, 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        own = [*vars(self.engine).values(), *self.engine.cache.keys, *self.engine.cache.values]
        buffers = [x for x in [*own, self.engine.cache.lengths] if isinstance(x, torch.Tensor)]
        before = [x.clone() for x in buffers]
        with Tape() as tape:
            function()
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> list[Tapes]:
    """Engines record on the CPU, as they would where there is CUDA; the list holds their recorders."""
    recorders: list[Tapes] = []
    build = DeviceFrames.__init__

    def built(self: DeviceFrames, *args: Any) -> None:
        build(self, *args)
        self.recorder = Tapes(self)
        recorders.append(self.recorder)

    monkeypatch.setattr(DeviceFrames, "__init__", built)
    monkeypatch.setattr(device_frames, "Compiled", lambda function: function)
    monkeypatch.setattr(device_frames, "SLOTS", 32)
    return recorders


@pytest.mark.parametrize("seed", range(12))
def test_replayed_steps_choose_the_same(seed: int, taped: list[Tapes]) -> None:
    rng = random.Random(seed)
    config = config_dict(rng)
    model, reference = make(config, seed)
    video = clip(config, rng.choice([1, 3, 5]), 4)
    need = stopping_requirement(reference, video, rng, (len(video), 4)) if seed % 2 else None
    for ratio in (0.9, 0.5, 0.9):  # the second and third call find what the ones before recorded
        plain = model.generate(video, ratio, need, return_state=True)
        found = model.generate(video, ratio, need, return_state=True, capture="compile")
        same_info(plain, found)
        same_state(plain.state, found.state)
    later = [
        model.generate(video, 0.4, need, state=plain.state, capture=c, return_state=True) for c in ("off", "compile")
    ]
    same_info(*later)
    assert taped[0].replayed > 0
    keys = {key for recorder in taped for key in recorder.replays}
    assert {"prefill", "choose"} <= {key[0] for key in keys} <= {"prefill", "step", "choose"}


def test_new_weights_and_fewer_rows_need_no_new_recording(taped: list[Tapes]) -> None:
    config = config_dict(random.Random(5))
    model, _ = make(config, 5)
    video = clip(config, 8, 4)
    first = model.generate(video, 0.8, capture="compile")
    model.generate(video, 0.8, capture="compile")
    recorded = len(taped[0].replays)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    for rows in (8, 7):  # 7 rows go into the room of 8
        changed = model.generate(video[:rows], 0.8, capture="compile")
        same_info(model.generate(video[:rows], 0.8), changed)
    assert not torch.equal(changed.gazing_pos, first.gazing_pos[:7])
    assert len(taped) == 1 and len(taped[0].replays) == recorded
    model.generate(video[:3], 0.8, capture="compile")
    assert len(taped) == 2, "another number of rows has buffers of its own"


def test_a_model_that_captured_can_be_copied(taped: list[Tapes]) -> None:
    config = config_dict(random.Random(6))
    model, _ = make(config, 6)
    video = clip(config, 2, 3)
    wanted = model.generate(video, 0.7, capture="compile")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    same_info(twin.generate(video, 0.7, capture="compile"), wanted)


def test_what_cannot_be_recorded_runs_as_it_is(
    taped: list[Tapes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Tapes, function: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Tapes, "record", refuse)
    config = config_dict(random.Random(5))
    model, _ = make(config, 5)
    video = clip(config, 2, 4)
    with caplog.at_level(logging.WARNING):
        found = model.generate(video, 0.8, capture="compile")
    same_info(model.generate(video, 0.8), found)
    assert [record.message for record in caplog.records] == [
        "CUDA graphs do not work here, going on without: operation not permitted when stream is capturing"
    ]


def test_graphs_need_cuda() -> None:
    config = config_dict(random.Random(1))
    with pytest.raises(InputError, match="CUDA graphs"):
        make(config, 1)[0].generate(clip(config, 1, 2), 0.5, capture="graphs")


def test_unknown_capture() -> None:
    config = config_dict(random.Random(1))
    with pytest.raises(InputError, match="unknown capture 'fast'; known: off, graphs, compile"):
        make(config, 1)[0].generate(clip(config, 1, 2), 0.5, capture="fast")  # type: ignore[arg-type]


def test_sampling_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host and the way of an accelerator, where it is never captured."""
    config = config_dict(random.Random(4))
    model, _ = make(config, 4)
    video = clip(config, 2, 3)

    def sampled(capture: Any = None) -> Any:
        return model.generate(video, 0.7, do_sample=True, generator=torch.Generator().manual_seed(1), capture=capture)

    on_host = sampled("compile")
    monkeypatch.setattr(generation, "_on_host", lambda device, capture: False)
    same_info(on_host, sampled())


# torch.compile itself. Everything that was compiled is forgotten between tests, which would otherwise share limits.


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

    monkeypatch.setattr(device_frames, "Compiled", lambda function: compiling.Compiled(function, backend))
    monkeypatch.setattr(device_frames, "SLOTS", 16)
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
