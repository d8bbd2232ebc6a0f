"""The picture that kept patches give."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from autogaze_mllm.common.pixels import resize_bicubic
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.pictures.mosaic import BLANK, psnr, rebuild
from autogaze_mllm.gaze.pictures.overlay import Overlay
from autogaze_mllm.gaze.pipeline import GazedChunk

GRIDS = {
    "square": PatchGrid.of("32+64", 16),
    "wide": PatchGrid.of([(32, 64), (64, 128)], 16),
    "odd ratios": PatchGrid.of("28+42+70", 14),
    "tall": PatchGrid.of([(48, 32), (112, 64)], 16),
}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def noise(grid: PatchGrid, frames: int = 1, clips: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(clips, frames, 3, *grid.scales[-1], generator=generator)


def masks(grid: PatchGrid, *kept: list[int], clips: int = 1) -> list[torch.Tensor]:
    """Positions kept in each frame, the same in every clip -> one mask per scale."""
    mask = torch.zeros(clips, len(kept), grid.size)
    for t, positions in enumerate(kept):
        mask[:, t, positions] = 1
    return list(mask.split(list(grid.counts), dim=2))


def region(grid: PatchGrid, position: int) -> torch.Tensor:
    """(H, W) True for the pixels whose centre lies in the patch."""
    scale, row, column = (int(value) for value in grid.locate(torch.tensor(position)))
    (height, width), (scale_h, scale_w) = grid.scales[-1], grid.scales[scale]
    y = ((torch.arange(height) + 0.5) * scale_h / height / grid.patch).floor()
    x = ((torch.arange(width) + 0.5) * scale_w / width / grid.patch).floor()
    return (y == row)[:, None] & (x == column)


@each_grid
def test_all_patches_give_the_frame(grid: PatchGrid) -> None:
    frames = noise(grid, 3, 2)
    everything = list(range(grid.size))
    finest = list(range(grid.offsets[-2], grid.size))
    assert torch.equal(rebuild(frames, masks(grid, everything, everything, everything, clips=2), grid), frames)
    assert torch.equal(rebuild(frames, masks(grid, finest, finest, finest, clips=2), grid), frames)


@each_grid
def test_a_patch_paints_its_own_place_only(grid: PatchGrid) -> None:
    frames = noise(grid) * 0.4  # nothing is as bright as the blank canvas
    for position in range(grid.size):
        picture = rebuild(frames, masks(grid, [position]), grid)[0, 0]
        assert torch.equal((picture != BLANK).any(dim=0), region(grid, position))


@each_grid
def test_a_patch_shows_its_own_pixels_only(grid: PatchGrid) -> None:
    """Other pixels of the frame, two and more beyond the patch, do not matter."""
    frames, others = noise(grid), noise(grid, seed=1)
    for position in range(grid.size):
        here = region(grid, position)
        near = F.max_pool2d(here.float()[None], 5, stride=1, padding=2)[0] > 0
        changed = torch.where(near, frames, others)
        one, other = (rebuild(pixels, masks(grid, [position]), grid) for pixels in (frames, changed))
        assert torch.allclose(one, other, atol=1e-6)


def test_a_coarse_patch_is_enlarged_by_itself() -> None:
    """Cut out of the small picture and enlarged on its own: nothing of its neighbours at its edges."""
    grid = GRIDS["square"]
    frames = noise(grid)
    small = resize_bicubic(frames[:, 0], 32, 32)
    for position, (top, left) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        patch = small[..., top : top + 16, left : left + 16]
        expected = F.interpolate(patch, scale_factor=2, mode="bilinear", align_corners=False)
        picture = rebuild(frames, masks(grid, [position]), grid)[:, 0]
        painted = picture[..., 2 * top : 2 * top + 32, 2 * left : 2 * left + 32]
        assert torch.allclose(painted, expected, atol=1e-6)


@each_grid
def test_fine_patches_lie_over_coarse_ones(grid: PatchGrid) -> None:
    frames = noise(grid)
    coarse, fine = list(range(grid.counts[0])), [grid.offsets[-2], grid.size - 1]
    only_coarse = rebuild(frames, masks(grid, coarse), grid)
    both = rebuild(frames, masks(grid, coarse + fine), grid)
    on_top = region(grid, fine[0]) | region(grid, fine[1])
    assert torch.equal(both[..., on_top], frames[..., on_top])
    assert torch.equal(both[..., ~on_top], only_coarse[..., ~on_top])
    assert not torch.equal(both, only_coarse)


def test_what_earlier_frames_left_stays_until_it_is_painted_over() -> None:
    grid = GRIDS["square"]
    frames = noise(grid, 3)
    picture = rebuild(frames, masks(grid, [4], [], [0]), grid)[0]
    first = region(grid, 4)
    assert torch.equal(picture[0][:, first], frames[0, 0][:, first])
    assert torch.equal(picture[1], picture[0])
    # A coarse patch of a later frame is newer than the fine one of an earlier frame.
    assert torch.equal(picture[2], rebuild(frames[:, 2:], masks(grid, [0]), grid)[0, 0])


def test_pixels_without_a_patch_stay_blank() -> None:
    grid = PatchGrid.of("24+40", 16)  # one patch of 16 out of 24, two by two out of 40
    frames = noise(grid) * 0.4
    picture = rebuild(frames, masks(grid, list(range(grid.size))), grid)
    assert torch.equal(picture[..., :32, :32], frames[..., :32, :32])
    assert (picture[..., 32:, :] == BLANK).all()
    assert (picture[..., :, 32:] == BLANK).all()


def test_a_clip_alone_gives_the_same() -> None:
    grid = GRIDS["wide"]
    frames = noise(grid, 2, 5)
    generator = torch.Generator().manual_seed(0)
    kept = [torch.randint(0, 2, (5, 2, count), generator=generator).float() for count in grid.counts]
    together = rebuild(frames, kept, grid)
    for row in range(5):
        alone = rebuild(frames[row : row + 1], [mask[row : row + 1] for mask in kept], grid)
        assert torch.allclose(alone, together[row : row + 1], atol=1e-6)


def test_psnr() -> None:
    assert psnr(0.0) == math.inf
    assert psnr(1.0) == pytest.approx(0)
    assert psnr(0.01) == pytest.approx(20)


def test_overlay_measures_the_mean_squared_error_over_all_frames() -> None:
    """Nothing kept: the canvas stays at 0.5, so grey of 0.75 is off by 0.25 and of 0.55 by 0.05."""
    grid = PatchGrid.of("32+64", 16)
    overlay = Overlay(grid)
    for value, frames in ((191, 3), (140, 1)):
        pictures = torch.full((frames, 3, 64, 64), value, dtype=torch.uint8)
        masks = [torch.zeros(1, frames, count) for count in grid.counts]
        overlay(GazedChunk(pictures, masks, (1, 1), pictures, grid))
    error = (3 * (191 / 255 - 0.5) ** 2 + (140 / 255 - 0.5) ** 2) / 4
    assert overlay.psnr == pytest.approx(-10 * math.log10(error), abs=1e-3)
