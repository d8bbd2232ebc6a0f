"""The decoding engine's ways of being fast change no result: cutting batches, leaving rows, knowing lengths or not."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import autogaze_mllm as am
from autogaze_mllm.gaze.autogaze.config import GazeEncoderConfig
from autogaze_mllm.gaze.autogaze.decoding import generation
from autogaze_mllm.gaze.autogaze.decoding.generation import GazeState
from autogaze_mllm.gaze.autogaze.decoding.micro_batch import HOST_BYTES, bytes_per_row, cut_rows
from autogaze_mllm.gaze.autogaze.encoder import TrunkBlock
from benchmarks.gaze_speed import operations
from reference_decoder import assert_rows

from ...helpers.gaze_models import clip, config_dict, make, rows_alone, same_info, same_state, stopping_requirement


@pytest.mark.parametrize("seed", range(40))
def test_lengths_that_only_the_device_knows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of an accelerator with a stop rule, run on the CPU: no row leaves, nothing is asked of the device."""
    rng = random.Random(seed)
    config = config_dict(rng)
    model, reference = make(config, seed)
    video, steps = clip(config, rng.randint(2, 4), 3), 3
    need = stopping_requirement(reference, video, rng, (len(video), steps))
    on_host = model.generate(video, 0.8, need, return_state=True)
    monkeypatch.setattr(generation, "_on_host", lambda device, capture: False)
    on_device = model.generate(video, 0.8, need, return_state=True)
    alone = rows_alone(reference, video, 0.8, need, steps)
    if min(result.margin for result in alone) < 1e-4:
        pytest.skip("a decision is too close for float32")
    same_info(on_host, on_device)
    same_state(on_host.state, on_device.state)
    assert_rows(on_device, alone, reference.size)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_a_batch_may_be_cut_anywhere(micro_batch: int, stop: bool) -> None:
    rng = random.Random(7)
    config = config_dict(rng)
    model, reference = make(config, 7)
    video = clip(config, 5, 4)
    need = stopping_requirement(reference, video, rng, (5, 4)) if stop else None
    whole = model.generate(video, 0.7, need, return_state=True)
    cut = model.generate(video, 0.7, need, return_state=True, micro_batch=micro_batch)
    same_info(whole, cut)
    same_state(whole.state, cut.state)
    later = [model.generate(video, 0.7, need, state=info.state, micro_batch=n) for info, n in ((whole, 5), (cut, 2))]
    same_info(*later)


def test_batches_are_cut_by_memory() -> None:
    model, cpu = am.AutoGaze(), torch.device("cpu")
    row = bytes_per_row(model.config, 16, 198, 4)
    assert 30 << 20 < row < 80 << 20, "keys and values of 16 frames at a ratio of 0.75 are 39 MB"
    pieces = cut_rows(100, row, cpu, None)
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert all((piece.stop - piece.start) * row <= HOST_BYTES for piece in pieces) and pieces[-1].stop == 100
    assert cut_rows(3, 10 * HOST_BYTES, cpu, None) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert cut_rows(4, 1, cpu, None, largest=2**30) == [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)]
    assert len(cut_rows(100, 1, cpu, None, largest=2**26)) == 4  # 31 rows have fewer than 2**31 numbers
    assert cut_rows(7, 1, cpu, 4) == [slice(0, 4), slice(4, 7)]
    with pytest.raises(am.InputError, match="micro_batch"):
        cut_rows(7, 1, cpu, 0)


@torch.no_grad()
def test_nothing_is_computed_twice() -> None:
    """Products of matrices and convolutions are those that the model cannot do without (attention is not counted)."""
    model = am.AutoGaze().eval()
    video = torch.rand(1, 3, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        info = model.generate(video, [0.2, 0.06, 0.06])
    needed = operations(model.config, info.num_gazing_each_frame.tolist())
    assert 0.7 * needed < counter.get_total_flops() <= needed


def test_finished_rows_leave_the_batch() -> None:
    rng = random.Random(11)
    config = config_dict(rng)
    model, reference = make(config, 11)
    video = clip(config, 6, 2)
    need = stopping_requirement(reference, video, rng, (6, 2))
    sizes: list[int] = []
    embedding = model.gazing_model.gaze_decoder.model.embed_tokens
    embedding.register_forward_pre_hook(lambda module, ids: sizes.append(len(ids[0])))
    info = model.generate(video, 1.0, need)
    steps = -(-info.num_gazing_each_row // model.config.heads_per_step)  # that each row took part in, of each frame
    assert sum(sizes) == int(steps.sum()), "each frame feeds all rows once and those that go on once a step"
    assert min(sizes) < 6


@torch.no_grad()
def test_bf16_gives_a_valid_selection_close_to_fp32() -> None:
    torch.manual_seed(0)
    model, video = am.AutoGaze().eval(), torch.rand(2, 3, 3, 224, 224)
    exact = model.generate(video, 0.2)
    rounded = am.AutoGaze().eval()
    rounded.load_state_dict(model.state_dict())
    info = rounded.bfloat16().generate(video, 0.2)
    assert torch.equal(info.num_gazing_each_frame, exact.num_gazing_each_frame) and not info.if_padded_gazing.any()
    for mine, theirs in zip(info.gazing_pos, exact.gazing_pos, strict=True):
        assert len(mine.unique()) == len(mine)
        assert len(set(mine.tolist()) & set(theirs.tolist())) > 0.5 * len(mine), "random weights decide by a hair"


def test_a_state_is_kept_only_where_it_is_asked_for() -> None:
    config = config_dict(random.Random(3))
    model, _ = make(config, 3)
    assert model.generate(clip(config, 1, 2), 0.5).state is None
    state = model.generate(clip(config, 1, 2), 0.5, return_state=True).state
    before = copy.deepcopy(state)
    model.generate(clip(config, 1, 2), 0.5, state=state, return_state=True)
    for mine, theirs in zip(_tensors(state), _tensors(before), strict=True):
        assert torch.equal(mine, theirs)


def _tensors(state: GazeState) -> list[torch.Tensor]:
    return [*state.keys, *state.values, state.lengths, state.unfed, state.unfed_counts, *state.conv]


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_the_begin_of_a_clip_is_as_if_nothing_had_been_before(kernel, frames):
    """What is left out of the convolution would have been multiplied with zeros."""
    torch.manual_seed(0)
    shape = GazeEncoderConfig(hidden_dim=6, trunk_temporal_kernel_size=kernel, trunk_spatial_kernel_size=3)
    block, x = TrunkBlock(shape), torch.randn(2, 6, frames, 5, 5)
    output, past = block(x, None)
    plain, plain_past = block(x, torch.zeros(2, 6, kernel - 1, 5, 5))
    assert torch.allclose(output, plain, atol=1e-5) and torch.equal(past, plain_past)
