"""Faults of the published gaze code that are absent here; the numbers are those of docs/specification.md."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.decoding.generation import Sampling
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.autogaze.processor import AutoGazeImageProcessor
from autogaze_mllm.gaze.grid import PatchGrid, mask_to_positions
from autogaze_mllm.gaze.selection import GazingInfo
from reference_decoder import Reference, assert_rows

DECODER = {
    "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 10,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "num_multi_token_pred": 3,
}  # fmt: skip
VISION = {"hidden_dim": 12, "out_dim": 24, "depth": 1, "kernel_size": 8}
VISION |= {"temporal_patch_size": 1, "trunk_temporal_kernel_size": 3, "trunk_spatial_kernel_size": 3}


def config_dict(vision: dict | None = None, decoder: dict | None = None, **top: Any) -> dict[str, Any]:
    """Scales 16+32 with patches of 8 pixels (4 + 16 = 20), 16 vision tokens per frame, 3 ids per step."""
    return {
        "model_type": "autogaze", "scales": "16+32", "num_vision_tokens_each_frame": 20,
        "gaze_model_config": {
            "input_img_size": 32,
            "vision_model_config": VISION | (vision or {}),
            "gaze_decoder_config": DECODER | (decoder or {}),
        },
        **top,
    }  # fmt: skip


def make(vision: dict | None = None, decoder: dict | None = None, **top: Any) -> AutoGaze:
    """The same weights for the same shapes, large enough that choices depend on what came before."""
    torch.manual_seed(1)
    model = AutoGaze(AutoGazeConfig.from_dict(config_dict(vision, decoder, **top))).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    return model


def clips(batch: int = 3, frames: int = 4, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(2))


def stopping(model: AutoGaze, video: torch.Tensor, quantile: float = 0.15) -> float:
    """A requirement that stops frames on the way."""
    with torch.no_grad():
        return float(model.score(video, model.generate(video, 1.0))[1].quantile(quantile))


def kept(info: GazingInfo, row: int) -> list[int]:
    return info.gazing_pos[row][~info.if_padded_gazing[row]].tolist()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Log-probability (B,) of everything that is drawn, in order."""
    logs: list[torch.Tensor] = []
    original = Sampling.draw

    def draw(self: Sampling, probabilities: torch.Tensor) -> torch.Tensor:
        ids = original(self, probabilities)
        logs.append(probabilities.gather(1, ids[:, None])[:, 0].log())
        return ids

    monkeypatch.setattr(Sampling, "draw", draw)
    return logs


class Made(TorchDispatchMode):
    """Every tensor that an operation allocates: (operation, shape, is floating point)."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[str, torch.Size, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in inputs:
                self.tensors.append((str(func), x.shape, x.is_floating_point()))
        return result


def test_e01_repeated_positions_are_a_choice() -> None:
    assert AutoGazeConfig().repeat_step_positions
    repeating, counting, video = make(), make(repeat_step_positions=False), clips()
    assert not torch.equal(repeating.generate(video, 0.9).gazing_pos, counting.generate(video, 0.9).gazing_pos)


def test_e02_rows_do_not_influence_each_other() -> None:
    model, video = make(), clips()
    need = stopping(model, video)
    together = model.generate(video, 0.9, need)
    assert (together.num_gazing_each_row.amax(0) > together.num_gazing_each_row.amin(0)).any()
    for row in range(len(video)):
        assert kept(model.generate(video[[row]], 0.9, need), 0) == kept(together, row)


def test_e03_ids_after_a_met_one_are_kept_as_published() -> None:
    model, video = make(), clips(8)
    info = model.generate(video, 0.9, stopping(model, video))
    holes = info.if_padded_gazing[:, :-1] & ~info.if_padded_gazing[:, 1:]
    frame = torch.repeat_interleave(torch.arange(4), info.num_gazing_each_frame)
    holes &= frame[:-1] == frame[1:]
    assert holes.any()
    assert torch.equal(info.gazing_pos == (frame + 1) * 20, info.if_padded_gazing)
    assert sum(int(mask.sum()) for mask in info.gazing_mask) == int((~info.if_padded_gazing).sum())


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("stop", [False, True])
def test_e04_scores_are_those_of_the_distribution_drawn_from(stop: bool, repeat: bool, drawn: list) -> None:
    model, clip = make(repeat_step_positions=repeat), clips(5)
    need, generator = stopping(model, clip) if stop else None, torch.Generator().manual_seed(3)
    padded = False
    for video in clip.split(1):  # one by one: a finished clip leaves the batch, and with it the draws
        drawn.clear()
        info = model.generate(video, 0.9, need, do_sample=True, temperature=0.7, top_k=7, generator=generator)
        padded |= bool(info.if_padded_gazing.any())
        expected, done = [], 0
        for count in info.num_gazing_each_frame.tolist():
            expected += drawn[done : done + count]
            done += -(-count // 3) * 3  # whole steps are drawn, and what is beyond the budget is thrown away
        assert done == len(drawn)
        with torch.no_grad():
            matching, _ = model.score(video, info, match_generation=True, temperature=0.7, top_k=7)
            published, _ = model.score(video, info)
        expected = torch.stack(expected, dim=1).masked_fill(info.if_padded_gazing, 0.0)
        torch.testing.assert_close(matching, expected, rtol=1e-4, atol=1e-4)
        assert (published - matching).abs().max() > 0.1
    assert padded == stop


@torch.no_grad()
def test_e04_scores_of_a_row_do_not_depend_on_its_batch() -> None:
    model, video = make(), clips(5)
    need = stopping(model, video)
    together = model.generate(video, 0.9, need)
    assert together.if_padded_gazing.any()
    scores = model.score(video, together, match_generation=True)[0].masked_fill(together.if_padded_gazing, 0.0)
    for row, clip in enumerate(video.split(1)):
        alone = model.generate(clip, 0.9, need)
        score = model.score(clip, alone, match_generation=True)[0][~alone.if_padded_gazing]
        torch.testing.assert_close(scores[row][~together.if_padded_gazing[row]], score, rtol=1e-4, atol=1e-4)


def test_e04_a_forced_choice_is_certain() -> None:
    model, video = make(), clips()
    info = model.generate(video, 1.0)
    last = info.num_gazing_each_frame.cumsum(0) - 1
    with torch.no_grad():
        assert (model.score(video, info, match_generation=True)[0][:, last] == 0).all()
        assert (model.score(video, info)[0][:, last] < -0.1).all()


def test_e05_sampling_leaves_nothing_out_unless_told() -> None:
    model = make(scales="16+64", num_vision_tokens_each_frame=68)
    video = clips(1, 1).expand(2000, -1, -1, -1, -1)
    generator = torch.Generator().manual_seed(4)
    # Hot enough that nothing is improbable: one of 68 patches is missed by 2000 draws once in 10^12.
    everything = model.train().generate(video, 0.0, temperature=1000.0, generator=generator).gazing_pos.unique()
    assert everything.tolist() == list(range(68))
    assert Sampling() == Sampling(1.0, top_k=None)
    assert len(model.generate(video, 0.0, temperature=1000.0, top_k=50, generator=generator).gazing_pos.unique()) == 50


def test_top_k_leaves_every_head_of_a_step_a_choice() -> None:
    """With fewer, later heads found nothing free: patches came twice, and log-probabilities were not numbers."""
    model, video = make().train(), clips()
    least = model.config.heads_per_step
    info = model.generate(video, 0.5, top_k=least)
    assert model.score(video, info, match_generation=True, top_k=least)[0].isfinite().all()
    for call in (
        lambda: model.generate(video, 0.5, top_k=least - 1),
        lambda: model.score(video, info, match_generation=True, top_k=least - 1),
    ):
        with pytest.raises(InputError, match=f"top_k must be at least the {least} ids of a step"):
            call()


def test_e06_temperature_may_be_an_integer() -> None:
    model, video = make().train(), clips()
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    as_integer = model.generate(video, 0.5, temperature=2, generator=one)
    assert torch.equal(as_integer.gazing_pos, model.generate(video, 0.5, temperature=2.0, generator=two).gazing_pos)
    with pytest.raises(InputError, match="temperature"):
        model.generate(video, 0.5, temperature=0)


def test_e07_the_cache_is_not_copied_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = make(decoder={"num_multi_token_pred": 1}), clips(1, 8)
    with Made() as made:
        state = model.generate(video, 1.0, return_state=True).state
    size = state.keys[0].numel() // 2
    copies = [shape for _, shape, _ in made.tensors if shape[-1:] == (10,) and shape.numel() >= size]
    assert len(copies) <= 2 * 2 * 2, "keys and values of two layers: allocated once, copied into the state once"
    monkeypatch.delattr(copy, "deepcopy")  # `Made` does not see what this one allocates
    model.generate(video, 1.0)


def test_e08_e09_no_dense_float_masks_and_no_scores_of_all_heads() -> None:
    batch, frames, heads, step = 2, 8, 4, 10
    model, video = make(decoder={"num_multi_token_pred": step}), clips(batch, frames)
    info = model.generate(video, 1.0, stopping(model, video, 0.02))
    chosen = info.gazing_pos.shape[1]
    slots = frames * 16 + chosen
    limit = min(batch * heads * 24 * slots, batch * chosen * step * 21)  # with a mask a head has 18 channels
    for call in (lambda: model.generate(video, 1.0), lambda: model.score(video, info)):
        with Made() as made:
            call()
        large = [(name, shape) for name, shape, floating in made.tensors if floating and shape.numel() >= limit]
        assert large == []


def test_e10_the_flash_flag_means_nothing() -> None:
    video = clips()
    results = [
        make(use_flash_attn=flag, attn_mode=mode).generate(video, 0.5).gazing_pos
        for flag, mode in ((True, "flash_attention_2"), (False, "sdpa"))
    ]
    assert torch.equal(*results)


def test_e11_a_budget_from_the_configuration_needs_no_cuda() -> None:
    info = make(gazing_ratio_config={"fixed": {"gazing_ratio": 0.4}}).generate(clips())
    assert info.num_gazing_each_frame.tolist() == [8] * 4


def test_e12_as_many_ids_per_step_as_prompt_tokens() -> None:
    model, video = make(decoder={"num_multi_token_pred": 16}), clips()
    reference = Reference(config_dict(decoder={"num_multi_token_pred": 16}), model.state_dict())
    alone = [reference.generate(video[[row]], [20] * 4) for row in range(len(video))]
    assert_rows(model.generate(video, 1.0), alone, 20)
    with pytest.raises(InputError, match="17 exceeds the 16 vision tokens"):
        make(decoder={"num_multi_token_pred": 17})


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
