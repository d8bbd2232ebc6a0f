"""Faults of the published decoding that are absent here; the numbers are those of docs/specification.md."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.decoding.generation import Sampling
from reference_decoder import Reference, assert_rows

from ...helpers.small_gaze import clips, config_dict, kept, make, stopping


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
