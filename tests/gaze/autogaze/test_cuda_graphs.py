"""Decoding steps that are captured give what the plain ones give."""

from __future__ import annotations

import copy
import gc
import logging
import math
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.decoding import device_loop, generation
from autogaze_mllm.gaze.autogaze.decoding.cuda_graphs import Recorder, default_capture
from autogaze_mllm.gaze.autogaze.decoding.device_loop import DeviceFrames

from ...helpers.gaze_models import clip, config_dict, make, same_info, same_state, stopping_requirement


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
        super().__init__(torch.device("cpu"), engine.buffers())
        self.replayed = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        before = [x.clone() for x in self.buffers]
        with Tape() as tape:
            function()
        for buffer, value in zip(self.buffers, before, strict=True):
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
        if self.capture != "off":
            self.recorder = Tapes(self)
            recorders.append(self.recorder)

    monkeypatch.setattr(DeviceFrames, "__init__", built)
    monkeypatch.setattr(device_loop, "Compiled", lambda function: function)
    monkeypatch.setattr(device_loop, "SLOTS", 32)
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


@pytest.mark.parametrize(
    "error",
    [RuntimeError("not permitted when stream is capturing\nmore"), torch.OutOfMemoryError("CUDA out of memory")],
)
@pytest.mark.parametrize("when", ["recorded", "replayed"])
def test_what_cannot_be_recorded_runs_as_it_is(
    when: str, error: Exception, taped: list[Tapes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Tapes, function: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.buffers[0].zero_()
            raise error

        if when == "recorded":
            raise error
        return replay

    monkeypatch.setattr(Tapes, "record", refuse)
    falls_back(taped, caplog, str(error).splitlines()[0])


@pytest.mark.parametrize("wrong", ["nothing runs", "one operation is lost", "a number is off"])
def test_a_replay_that_does_something_else_is_noticed(
    wrong: str, taped: list[Tapes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record, whole = Tapes.record, Tape.replay

    def broken(self: Tape) -> None:
        if wrong == "nothing runs":
            return
        if wrong == "one operation is lost":  # the last layer's values, which only later steps would miss
            writes = [n for n, (function, *_) in enumerate(self.operations) if "index_put" in str(function)]
            if writes:
                del self.operations[writes[-1]]
        whole(self)

    def off(self: Tapes, function: Callable[[], None]) -> Callable[[], None]:
        replay = record(self, function)

        def shifted() -> None:
            replay()
            next(x for x in self.buffers if x.ndim == 4)[0, 0, 0, 0] += 1.0  # a key of the first layer

        return shifted

    if wrong == "a number is off":
        monkeypatch.setattr(Tapes, "record", off)
    else:
        monkeypatch.setattr(Tape, "replay", broken)
    falls_back(taped, caplog, "a replayed step does not do what it does otherwise")


def falls_back(taped: list[Tapes], caplog: pytest.LogCaptureFixture, cause: str) -> None:
    """One warning, the plain result, and no second attempt with as many rows."""
    config = config_dict(random.Random(5))
    model, _ = make(config, 5)
    video = clip(config, 2, 4)
    plain = model.generate(video, 0.8, return_state=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = model.generate(video, 0.8, return_state=True, capture="compile")
            same_info(plain, found)
            same_state(plain.state, found.state)
    messages = [record.message for record in caplog.records]
    assert messages == [f"CUDA graphs do not work here, going on without: {cause}"]
    assert len(taped) == 1 and not taped[0].replays


def test_what_is_replayed_does_not_run_again(taped: list[Tapes], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ("_prefill", "_step", "_choose"):
        whole = getattr(DeviceFrames, name)
        monkeypatch.setattr(DeviceFrames, name, lambda *args, w=whole, n=name: (ran.append(n), w(*args))[0])
    config = config_dict(random.Random(5))
    model, _ = make(config, 5)
    video = clip(config, 2, 4)
    wanted = model.generate(video, 0.8)
    counts = []
    for _ in range(4):
        ran.clear()
        same_info(model.generate(video, 0.8, capture="compile"), wanted)
        counts.append(len(ran))
    assert counts[0] > 0 and counts[2:] == [0, 0]


def test_the_default() -> None:
    """Graphs are what CUDA is for; elsewhere there are none."""
    found = {name: default_capture(torch.device(name)) for name in ("cuda", "cuda:1", "cpu", "mps")}
    assert found == {"cuda": "graphs", "cuda:1": "graphs", "cpu": "off", "mps": "off"}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_are_the_default_on_cuda(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = config_dict(random.Random(5))
    model = make(config, 5)[0].to("cuda", dtype)
    video = clip(config, 3, 4).to("cuda")
    wanted = model.generate(video, 0.8, capture="off")
    for _ in range(3):
        same_info(model.generate(video, 0.8), wanted)
    ((_, engine),) = device_loop._ENGINES[model.gazing_model.gaze_decoder].kept
    assert engine.recorder is not None and {key[0] for key in engine.recorder.replays} == {"prefill", "step", "choose"}
    assert not caplog.records


@pytest.mark.cuda
def test_a_recording_that_fails_leaves_cuda_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    total, stream = torch.zeros(1, device="cuda"), torch.cuda.current_stream()
    recorder = Recorder(total.device, [total])

    def add() -> None:
        total.add_(float(total.cos()) ** 2)  # asks the device, which a recording must not

    for _ in range(4):
        recorder(("add",), add)
    wanted = 0.0
    for _ in range(4):
        wanted += math.cos(wanted) ** 2
    assert float(total) == pytest.approx(wanted, rel=1e-4) and not recorder.works
    assert len(caplog.records) == 1 and torch.cuda.current_stream() == stream
    torch.randn(3, device="cuda")  # would fail if a recording were thought to go on


@pytest.mark.parametrize("capture", ["off", "compile"])
def test_memory_is_given_back_at_once(capture: Any, taped: list[Tapes], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the call, or with the model, without waiting for the garbage collector."""
    engines: list[weakref.ref[DeviceFrames]] = []
    begin = DeviceFrames.begin
    monkeypatch.setattr(DeviceFrames, "begin", lambda self, *n: (engines.append(weakref.ref(self)), begin(self, *n))[1])
    monkeypatch.setattr(generation, "_on_host", lambda device, capture: False)
    config = config_dict(random.Random(5))
    model, _ = make(config, 5)
    gc.disable()
    try:
        for _ in range(2):
            model.generate(clip(config, 2, 2), 0.5, capture=capture)
        assert [engine() is None for engine in engines] == [capture == "off"] * 2
        taped.clear()
        device_loop._ENGINES.pop(model.gazing_model.gaze_decoder, None)  # as when the model goes
        assert all(engine() is None for engine in engines)
    finally:
        gc.enable()


def test_callers_that_ask_for_ever_other_shapes_are_not_slowed_down(taped: list[Tapes]) -> None:
    config = config_dict(random.Random(5))
    model, _ = make(config, 5)
    video = clip(config, 4, 2)
    wanted = [model.generate(video[:rows], 0.5) for rows in (1, 2, 3, 4)]
    for call in range(40):
        same_info(model.generate(video[: call % 4 + 1], 0.5, capture="compile"), wanted[call % 4])
    assert len(taped) == device_loop.KEPT + 1, "one more in 40 calls"


def test_who_goes_on_with_another_size_is_served(taped: list[Tapes]) -> None:
    """One kind after the other, each asked for twice in a row and longer than the one before: all get an engine."""
    config = config_dict(random.Random(5))
    model, _ = make(config, 5)
    for frames in (2, 4, 6, 8):
        video = clip(config, 1, frames)
        wanted = model.generate(video, 0.5)
        for _ in range(3):
            same_info(model.generate(video, 0.5, capture="compile"), wanted)
    assert len(taped) == 4 and taped[-1].replayed > 0


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
