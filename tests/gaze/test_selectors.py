"""All selectors answer in the same form and keep to the same rules; what each one adds is tested after that."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.pictures.mosaic import psnr, rebuild
from autogaze_mllm.gaze.selection import GazingInfo
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.gaze.selectors.base import Selector, selector_name
from autogaze_mllm.gaze.selectors.baselines import AllSelector, RandomSelector
from autogaze_mllm.video.synthetic import moving_scene

from ..helpers.selections import RAW_PIXEL_DIFF, SELECTORS

SQUARE = PatchGrid.of("32+64", 16)
WIDE = PatchGrid.of([(32, 64), (96, 160)], 16)
FOUR = PatchGrid.of("32+64+112+224", 16)


each_selector = pytest.mark.parametrize("selector", SELECTORS.values(), ids=SELECTORS)
LIMITED = [name for name in SELECTORS if name != "all"]
limited = pytest.mark.parametrize("selector", [SELECTORS[name] for name in LIMITED], ids=LIMITED)
each_grid = pytest.mark.parametrize("grid", [SQUARE, WIDE], ids=["square", "wide"])


def noise(grid: PatchGrid, clips: int, frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(clips, frames, 3, *grid.scales[-1], generator=generator)


def scene(grid: PatchGrid, frames: int) -> torch.Tensor:
    """(1, frames, 3, H, W) something moves over a still background."""
    height, width = grid.scales[-1]
    pixels = torch.from_numpy(np.stack(list(moving_scene(width, height, frames))))
    return pixels.permute(0, 3, 1, 2)[None].float() / 255


def kept(info: GazingInfo, row: int = 0) -> list[list[int]]:
    """Positions of each frame of one clip, ascending."""
    assert info.gazing_mask is not None
    return [frame.nonzero()[:, 0].tolist() for frame in torch.cat(info.gazing_mask, dim=2)[row]]


def counts(info: GazingInfo, row: int = 0) -> list[int]:
    return [len(frame) for frame in kept(info, row)]


# What all have in common


@each_grid
@each_selector
def test_same_form(selector: Selector, grid: PatchGrid) -> None:
    info = selector.select(noise(grid, 3, 4), grid, 0.3, selector.default_loss)
    assert isinstance(selector, Selector)
    assert info.grid == grid
    assert info.num_vision_tokens_each_frame == grid.size
    assert info.num_gazing_each_frame is not None
    total = int(info.num_gazing_each_frame.sum())
    assert info.num_gazing_each_frame.shape == (4,)
    assert (info.gazing_pos.shape, info.gazing_pos.dtype) == ((3, total), torch.int64)
    assert info.if_padded_gazing is not None
    assert (info.if_padded_gazing.shape, info.if_padded_gazing.dtype) == ((3, total), torch.bool)
    assert info.gazing_mask is not None
    assert [mask.shape for mask in info.gazing_mask] == [(3, 4, count) for count in grid.counts]
    # Positions and masks say the same thing; positions count on from frame to frame; every frame is as long as the
    # clip with most patches in it.
    frame_of = torch.repeat_interleave(torch.arange(4), info.num_gazing_each_frame)
    for row in range(3):
        listed: list[list[int]] = [[], [], [], []]
        for position, padded, t in zip(info.gazing_pos[row], info.if_padded_gazing[row], frame_of, strict=True):
            if not padded:
                listed[t].append(int(position) - int(t) * grid.size)
        assert [sorted(frame) for frame in listed] == kept(info, row)
    if not isinstance(selector, AutoGaze):
        longest = [max(counts(info, row)[t] for row in range(3)) for t in range(4)]
        assert info.num_gazing_each_frame.tolist() == longest


@each_grid
@limited
@pytest.mark.parametrize("ratio", [1e-6, 0.1, 0.5, [0.05, 0.3, 0.1, 1.0]], ids=str)
def test_budget(selector: Selector, grid: PatchGrid, ratio: float | list[float]) -> None:
    """At most the share of the patches, at least one."""
    for loss in (None, selector.default_loss):
        info = selector.select(noise(grid, 2, 4), grid, ratio, loss)
        # The gaze model spends its budget tile by tile.
        tiles = 1 if info.tiles is None else len(info.tiles.gazing_pos) // 2
        size = grid.size if info.tiles is None else SQUARE.size
        for row in range(2):
            for count, share in zip(counts(info, row), ratio if isinstance(ratio, list) else [ratio] * 4, strict=True):
                assert 1 <= count <= max(int(share * size + 1e-4), 1) * tiles


@pytest.mark.parametrize("name", [name for name in LIMITED if name != "pixel-diff"])  # which leaves noise alone
def test_budget_is_spent_without_a_stop_rule(name: str) -> None:
    selector = SELECTORS[name]
    assert counts(selector.select(noise(SQUARE, 1, 3), SQUARE, 0.5, None)) == [10, 10, 10]


@limited
def test_ratio_out_of_range_or_of_another_length(selector: Selector) -> None:
    for ratio in (1.5, -0.1, [0.5, 0.5]):
        with pytest.raises(InputError, match="ratio"):
            selector.select(noise(SQUARE, 1, 4), SQUARE, ratio, None)


@each_grid
@each_selector
def test_a_clip_alone_gives_the_same(selector: Selector, grid: PatchGrid) -> None:
    frames = noise(grid, 7, 3)
    frames[3] = frames[2].flip(-1)
    frames[5] = 0.5
    loss = None if isinstance(selector, AutoGaze) else 0.15
    together = selector.select(frames, grid, 0.4, loss)
    for row in range(7):
        assert kept(selector.select(frames[row : row + 1], grid, 0.4, loss)) == kept(together, row)


def test_a_clip_alone_gives_the_same_with_a_learned_stop_rule() -> None:
    selector, frames = SELECTORS["AutoGaze"], noise(SQUARE, 7, 3)
    assert isinstance(selector, AutoGaze)
    with torch.no_grad():
        losses = selector.score(selector.processor.normalize(frames), selector.select(frames, SQUARE, 1.0, None))[1]
    loss = float(losses.quantile(0.1))
    together = selector.select(frames, SQUARE, 1.0, loss)
    assert len({tuple(counts(together, row)) for row in range(7)}) > 1  # clips stop at different lengths
    for row in range(7):
        assert kept(selector.select(frames[row : row + 1], SQUARE, 1.0, loss)) == kept(together, row)


@pytest.mark.parametrize("name", ["pixel-diff-raw", "AutoGaze"])
def test_later_frames_do_not_change_earlier_choices(name: str) -> None:
    frames = noise(SQUARE, 2, 5)
    changed = frames.clone()
    changed[:, 3:] = noise(SQUARE, 2, 2, seed=1)
    one, other = (SELECTORS[name].select(pixels, SQUARE, 0.4, None) for pixels in (frames, changed))
    short = SELECTORS[name].select(frames[:, :3], SQUARE, 0.4, None)
    for row in range(2):
        assert kept(one, row)[:3] == kept(other, row)[:3] == kept(short, row)
    assert any(kept(one, row)[3:] != kept(other, row)[3:] for row in range(2))


# All and random


def test_all_keeps_everything() -> None:
    for grid in (SQUARE, WIDE):
        info = AllSelector().select(noise(grid, 2, 3), grid, 0.01, 0.5)
        assert kept(info, 1) == [list(range(grid.size))] * 3


def test_random_is_decided_by_seed_and_clip() -> None:
    frames = noise(FOUR, 2, 3)
    first = kept(RandomSelector(1).select(frames, FOUR, 0.2, None))
    assert first == kept(RandomSelector(1).select(frames, FOUR, 0.2, None))
    assert first != kept(RandomSelector(2).select(frames, FOUR, 0.2, None))
    assert first != kept(RandomSelector(1).select(frames, FOUR, 0.2, None), row=1)
    assert first[0] != first[1]
    state = torch.random.get_rng_state()
    RandomSelector(1).select(frames, FOUR, 0.2, None)
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_is_spread_over_the_grid() -> None:
    info = RandomSelector().select(noise(SQUARE, 40, 10), SQUARE, 0.5, None)
    assert info.gazing_mask is not None
    often = torch.cat(info.gazing_mask, dim=2).mean(dim=(0, 1))
    assert often.min() > 0.4
    assert often.max() < 0.6


# Pixel differences


def worst_place(frames: torch.Tensor, picture: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Largest root mean square error over places of the size of a finest patch (B, T)."""
    (rows, columns), patch = grid.cells[-1], grid.patch
    error = (frames - picture).square().mean(dim=2)[..., : rows * patch, : columns * patch]
    places = error.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).mean(dim=(3, 5))
    return places.sqrt().amax(dim=(2, 3))


def test_a_still_video_is_kept_once() -> None:
    frames = scene(FOUR, 1).expand(1, 6, -1, -1, -1)
    found = counts(RAW_PIXEL_DIFF.select(frames, FOUR, 1.0, 0.02))
    assert found[0] > 20
    assert found[1:] == [1] * 5


def test_a_blank_video_needs_one_patch_per_frame() -> None:
    assert counts(RAW_PIXEL_DIFF.select(torch.full((1, 3, 3, 64, 64), 0.5), SQUARE, 1.0, 0.05)) == [1, 1, 1]


def test_what_is_new_is_kept_where_and_when_it_appears() -> None:
    frames = scene(FOUR, 1).expand(1, 6, -1, -1, -1).clone()
    frames[:, 3:, :, 64:80, 128:160] = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    info = RAW_PIXEL_DIFF.select(frames, FOUR, 1.0, 0.03)
    finest = FOUR.offsets[-2]
    new = {finest + 4 * 14 + 8, finest + 4 * 14 + 9}
    found = kept(info)
    assert new <= set(found[3])
    assert len(found[3]) <= 6
    for t in (1, 2, 4, 5):
        assert len(found[t]) == 1
        assert t > 2 or not new & set(found[t])


@pytest.mark.parametrize("grid", [SQUARE, WIDE, FOUR, PatchGrid.of("28+42+70", 14)], ids=str)
@pytest.mark.parametrize("loss", [0.02, 0.08, 0.2])
def test_no_place_is_off_by_more_than_the_loss(grid: PatchGrid, loss: float) -> None:
    frames = torch.cat([scene(grid, 3), noise(grid, 1, 3)])
    info = RAW_PIXEL_DIFF.select(frames, grid, 1.0, loss)
    assert info.gazing_mask is not None
    assert worst_place(frames, rebuild(frames, info.gazing_mask, grid), grid).max() <= loss + 1e-5


def test_a_tighter_loss_keeps_more() -> None:
    frames = scene(FOUR, 4)
    found = [sum(counts(RAW_PIXEL_DIFF.select(frames, FOUR, 1.0, loss))) for loss in (0.2, 0.1, 0.05, 0.02, 0.005)]
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]


def test_no_stop_rule_is_the_tightest() -> None:
    frames = noise(SQUARE, 1, 2)
    info = RAW_PIXEL_DIFF.select(frames, SQUARE, 1.0, None)
    assert info.gazing_mask is not None
    assert torch.equal(rebuild(frames, info.gazing_mask, SQUARE), frames)


@pytest.mark.parametrize("ratio", [0.05, 0.2])
@pytest.mark.parametrize("grid", [FOUR, PatchGrid.of([(32, 64), (112, 224)], 16)], ids=["square", "wide"])
def test_better_picture_than_random_with_as_many_patches(grid: PatchGrid, ratio: float) -> None:
    frames = scene(grid, 4)
    info = RAW_PIXEL_DIFF.select(frames, grid, ratio, 0.03)
    same = [(count + 0.5) / grid.size for count in counts(info)]
    quality = []
    for choice in (info, *(RandomSelector(seed).select(frames, grid, same, None) for seed in range(3))):
        assert counts(choice) == counts(info)
        assert choice.gazing_mask is not None
        quality.append(psnr(float((rebuild(frames, choice.gazing_mask, grid) - frames).square().mean())))
    assert quality[0] > max(quality[1:]) + 3


def test_coarse_patches_do_where_there_is_no_detail() -> None:
    smooth = torch.linspace(0, 1, 224).expand(1, 1, 3, 224, 224)
    found = kept(RAW_PIXEL_DIFF.select(smooth, FOUR, 1.0, 0.03))[0]
    assert max(found) < FOUR.offsets[-2]


def test_half_precision_frames() -> None:
    frames = noise(SQUARE, 1, 2)
    assert counts(RAW_PIXEL_DIFF.select(frames.bfloat16(), SQUARE, 0.5, None)) == [10, 10]


# By name


@pytest.mark.parametrize("name", ["pixel-diff", "pixel-diff-raw", "random", "all"])
def test_by_name(name: str) -> None:
    selector = load_selector(name)
    assert isinstance(selector, Selector)
    assert selector_name(selector) == name
    assert load_selector(selector) is selector


def test_gaze_model_from_a_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = SELECTORS["AutoGaze"]
    assert isinstance(model, AutoGaze)
    model.save_pretrained(tmp_path)
    loaded = load_selector(str(tmp_path))
    frames = noise(SQUARE, 1, 2)
    assert selector_name(loaded) == "AutoGaze"
    assert kept(loaded.select(frames, SQUARE, 0.5, None)) == kept(model.select(frames, SQUARE, 0.5, None))


@pytest.mark.parametrize("gaze", ["no such/place/at all", 42, None])
def test_unknown_name(gaze: object) -> None:
    with pytest.raises(InputError) as caught:
        load_selector(gaze)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in (str(gaze), "pixel-diff", "random", "all"))
