"""Faults of the published code in streaming, frames, settings and selections that are absent here; the numbers are
those of docs/specification.md."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.processor import AutoGazeImageProcessor
from autogaze_mllm.gaze.grid import PatchGrid, mask_to_positions

from ...helpers.small_gaze import clips, config_dict, kept, make, stopping


@pytest.mark.parametrize("kernel", [1, 3])
def test_e13_streaming_leaves_its_state_alone(kernel: int) -> None:
    model, video = make(vision={"trunk_temporal_kernel_size": kernel}), clips()
    whole, states = model.generate(video, 0.6), [None]
    for t in range(4):
        infos = [model.generate(video[:, [t]], 0.6, state=states[-1], return_state=True) for _ in range(2)]
        for info in infos:
            assert torch.equal(info.gazing_pos + 20 * t, whole.gazing_pos[:, 12 * t : 12 * t + 12])
        states.append(infos[0].state)


def test_e13_a_state_holds_no_graph_of_the_calls_before() -> None:
    state = make().generate(clips(), 0.5, return_state=True).state
    assert not any(tensor.requires_grad for tensor in (*state.keys, *state.values, *state.conv))


def test_e14_no_patch_is_lost_from_a_scale() -> None:
    assert PatchGrid.of("16+24+48", 8).counts == (4, 9, 36)
    assert PatchGrid.of("20+50", 16).counts == (1, 9)
    info = make(scales="16+24+48", num_vision_tokens_each_frame=49).generate(clips(1, 2), 1.0)
    assert [mask.shape[2] for mask in info.gazing_mask] == [4, 9, 36]
    assert all((mask == 1).all() for mask in info.gazing_mask)


def tile(video: torch.Tensor, row: int, column: int) -> torch.Tensor:
    return video[..., 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]


def test_e15_frames_need_not_be_square() -> None:
    scales = [(24, 40), (48, 80)]  # (height, width): 3x5 and 6x10 patches of 8 pixels
    model, video = make(), clips(2, 3, 48, 80)
    need = [[stopping(model, video)] * 3, [-1e9] * 3]
    info = model.generate(video, 0.6, need, target_scales=scales, target_patch_size=8)
    assert info.num_vision_tokens_each_frame == info.grid.size == 15 + 60
    assert info.scales == scales
    assert torch.equal(info.task_loss_requirement, torch.tensor(need))
    padded = torch.nn.functional.pad(video, (0, 16, 0, 16))
    for row, column in itertools.product(range(2), range(3)):
        masks = model.generate(tile(padded, row, column), 0.6, need).gazing_mask
        for mask, merged, cells, shape in zip(masks, info.gazing_mask, (2, 4), ((3, 5), (6, 10)), strict=True):
            part = merged.unflatten(2, shape)[..., cells * row :, cells * column :][..., :cells, :cells]
            assert torch.equal(mask.unflatten(2, (cells, cells))[..., : part.shape[2], : part.shape[3]], part)


def test_e15_a_tuple_of_scales_is_as_good_as_a_list() -> None:
    model, video = make(), clips()
    plain = model.generate(video, 0.5)
    for scales in ((16, 32), [32, 16], "16+32", ((16, 16), (32, 32))):
        info = model.generate(video, 0.5, target_scales=scales, target_patch_size=8)
        assert info.tiles is None and torch.equal(info.gazing_pos, plain.gazing_pos)


def test_e15_a_coarse_scale_that_grew_more_keeps_its_size() -> None:
    info = make().generate(clips(1, 2, 64, 64), 0.8, target_scales=[48, 64], target_patch_size=8)
    assert info.num_vision_tokens_each_frame == 36 + 64
    assert [mask.shape[2] for mask in info.gazing_mask] == [36, 64]
    finest = info.gazing_pos[~info.if_padded_gazing] % 100 >= 36
    assert int(finest.sum()) == int(info.gazing_mask[1].sum())


@pytest.mark.parametrize("match", [False, True])
@torch.no_grad()
def test_e15_selections_of_tiles_can_be_scored(match: bool) -> None:
    model, video = make(), clips(1, 3, 64, 96)
    need = stopping(model, video)
    info = model.generate(video, 0.6, need, target_scales=[(32, 48), (64, 96)], target_patch_size=8)
    values = model.score(video, info, match_generation=match)
    for number in range(2):  # log-probabilities, predicted losses
        assert (values[number][info.if_padded_gazing] == 0).all()
        merged, alone = {}, {}
        for position, value in zip(kept(info, 0), values[number][~info.if_padded_gazing].tolist(), strict=True):
            scale, row, column = (int(x) for x in info.grid.locate(torch.tensor(position % info.grid.size)))
            cells = (2, 4)[scale]
            local = model.grid.offsets[scale] + row % cells * cells + column % cells
            merged[row // cells, column // cells, position // info.grid.size, local] = value
        for row, column in itertools.product(range(2), range(3)):
            part = tile(video, row, column)
            own = model.generate(part, 0.6, need)
            scores = model.score(part, own, match_generation=match)[number][~own.if_padded_gazing].tolist()
            alone |= {(row, column, *divmod(at, 20)): value for at, value in zip(kept(own, 0), scores, strict=True)}
        assert merged == pytest.approx(alone, abs=1e-4)


def test_e16_self_strategy_for_a_batch() -> None:
    probe, video = make(), clips()
    need = stopping(probe, video)
    model = make(
        gazing_ratio_config={"fixed": {"gazing_ratio": 0.9}},
        gazing_ratio_each_frame_config={"sample_strategy_during_inference": "self"},
        task_loss_requirement_config={"fixed": {"task_loss_requirement": need}},
    )
    info = model.generate(video)
    wanted = torch.stack([mask.sum(2) for mask in probe.generate(video, 0.9, need).gazing_mask]).sum(0)
    assert torch.equal(info.num_gazing_each_row, wanted.long())
    for row in range(len(video)):
        assert kept(model.generate(video[[row]]), 0) == kept(info, row)


@pytest.mark.parametrize("ratio", [1.01, -0.1, math.nan, [0.5, 0.5, 2.0, 0.5], [0.5, 0.5]])
def test_e17_impossible_ratios_are_refused(ratio: float | list[float]) -> None:
    with pytest.raises(InputError, match="ratio"):
        make().generate(clips(), ratio)


def test_e18_configurations_do_not_write_into_what_they_are_given() -> None:
    source = config_dict()
    before = copy.deepcopy(source)
    stored = AutoGazeConfig.from_dict(source).to_dict()
    stored["gaze_model_config"]["gaze_decoder_config"]["hidden_size"] = 1
    assert source == before
    AutoGazeConfig().to_dict()["gaze_model_config"]["gaze_decoder_config"]["rope_scaling"]["factor"] = 1.0
    assert AutoGazeConfig().decoder.rope_scaling["factor"] == 8.0


def test_e19_empty_selections() -> None:
    positions, padded = mask_to_positions(torch.zeros(3, 5))
    assert positions.shape == padded.shape == (3, 0)
    model, video = make(), clips(2, 12, 16, 16)
    # Of each tile only the corner lies inside the frame, so that what was chosen often lies outside of it.
    info = model.generate(video, 0.0, target_scales=[8, 16], target_patch_size=8)
    assert int(info.num_gazing_each_frame.min()) == 0
    assert model.score(video, info)[0].shape == info.gazing_pos.shape


def test_e20_a_requirement_holds_for_one_call() -> None:
    model, video = make(), clips()
    before = model.generate(video, 0.9)
    model.generate(video, 0.9, stopping(model, video))
    after = model.generate(video, 0.9)
    assert after.task_loss_requirement is None
    assert torch.equal(before.gazing_pos, after.gazing_pos)


def test_e28_the_processor_does_what_the_released_weights_expect() -> None:
    frames = torch.zeros(2, 240, 320, 3, dtype=torch.uint8)
    frames[1] = 255
    black, white = AutoGazeImageProcessor()(list(frames.numpy()))
    assert black.shape == (3, 224, 298)
    assert AutoGazeImageProcessor()([frames[0].transpose(0, 1).numpy()]).shape[2:] == (298, 224)
    torch.testing.assert_close(black[:, 0, 0], torch.tensor([-6.4847, -6.5000, -6.2489]), rtol=0, atol=1e-4)
    torch.testing.assert_close(white[:, 0, 0], torch.tensor([2.2489, 2.4286, 2.6400]), rtol=0, atol=1e-4)
    assert make().processor.to_dict()["size"] == {"shortest_edge": 32}


def test_e30_options_do_what_they_say() -> None:
    model, video = make(), clips()
    assert model.generate(video, 0.0).num_gazing_each_frame.tolist() == [1] * 4
    need = [[stopping(model, video)] * 4] * 3
    as_list, as_tensor = (model.generate(video, 0.9, value).gazing_pos for value in (need, torch.tensor(need)))
    assert torch.equal(as_list, as_tensor)
    assert "max_batch_size" not in model.config.to_dict()
