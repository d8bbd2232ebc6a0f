"""The noise of a video, estimated from it, and pixel-diff with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autogaze_mllm import PatchGrid
from autogaze_mllm.gaze.selection import GazingInfo
from autogaze_mllm.gaze.selectors.noise import NoiseMeter
from autogaze_mllm.gaze.selectors.pixel_diff import PixelDiffSelector
from autogaze_mllm.training.search.greedy import search_mosaic
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask

GRID = PatchGrid.of("32+64+112", 16)


def scene(frames: int, moving: bool, side: int = 112, seed: int = 0) -> torch.Tensor:
    """(1, frames, 3, side, side): soft surfaces, with a square of fine texture that may move."""
    generator = torch.Generator().manual_seed(seed)
    back = F.interpolate(torch.rand(1, 3, 5, 5, generator=generator), (side, side), mode="bicubic").clamp(0, 1)
    square = torch.rand(3, 24, 24, generator=generator)
    clip = (0.2 + 0.6 * back)[:, None].repeat(1, frames, 1, 1, 1)
    for t in range(frames):
        at = 8 + 6 * t * moving
        clip[0, t, :, 40:64, at : at + 24] = square
    return clip


def noisy(clip: torch.Tensor, strength: float, seed: int = 1) -> torch.Tensor:
    return (clip + strength * torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def levels(clip: torch.Tensor) -> list[float]:
    meter = NoiseMeter()
    return [float(meter.next_frame(clip[:, t])) for t in range(clip.shape[1])]


def kept(info: GazingInfo) -> int:
    assert info.if_padded_gazing is not None
    return int((~info.if_padded_gazing).sum())


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("strength", [0.01, 0.03, 0.08])
def test_the_level_is_that_of_the_noise(strength: float, moving: bool) -> None:
    for level in levels(noisy(scene(4, moving), strength)):
        assert level == pytest.approx(strength, rel=0.12)


@pytest.mark.parametrize("moving", [False, True])
def test_a_clean_clip_has_none(moving: bool) -> None:
    assert max(levels(scene(4, moving))) < 1e-3


def test_a_picture_of_texture_alone_is_not_noise_once_it_stands_still() -> None:
    texture = torch.rand(1, 1, 3, 112, 112, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1, 1)
    assert levels(texture)[1:] == [0.0, 0.0]


def test_as_with_every_second_difference_and_every_frame() -> None:
    """The plain way: a convolution, all 256 values of a block, the quantile of the blocks of all frames."""
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])[None, None] / 6

    def blocks(images: torch.Tensor) -> torch.Tensor:
        high = F.conv2d(images[0][:, None], kernel).abs()[:, 0, :96, :96]
        return high.unfold(1, 16, 16).unfold(2, 16, 16).flatten(3).median(dim=3).values.mean(dim=0).flatten() / 0.6745

    for strength in (0.0, 0.02, 0.06):
        clip = noisy(scene(6, True), strength)
        within = [blocks(frame[None]) for frame in clip[0]]
        between = [blocks(frame[None]) / 2**0.5 for frame in clip[0].diff(dim=0)]
        quiet = [torch.cat(found).quantile(0.2) for found in (within, between)]
        assert levels(clip)[-1] == pytest.approx(float(min(quiet)), rel=0.03, abs=1e-4)


def test_it_follows_when_it_gets_dark() -> None:
    clip = scene(1, False).expand(1, 40, -1, -1, -1)
    found = levels(torch.cat([noisy(clip[:, :20], 0.01), noisy(clip[:, 20:], 0.06, seed=2)], dim=1))
    assert found[19] == pytest.approx(0.01, rel=0.12)
    assert found[-1] == pytest.approx(0.06, rel=0.12)


def test_texture_of_a_single_picture_is_no_noise() -> None:
    """Alone it looks the same; what stands in a picture is kept as without a floor."""
    picture = torch.rand(1, 1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    one, other = (PixelDiffSelector(floor).select(picture, GRID, 0.5, 0.05) for floor in (True, False))
    assert torch.equal(one.gazing_pos, other.gazing_pos) and kept(one) == GRID.size // 2


def test_without_noise_both_rules_are_one() -> None:
    clip = (scene(4, True) * 255).round() / 255
    one, other = (PixelDiffSelector(floor).select(clip, GRID, 1.0, 0.03) for floor in (True, False))
    assert abs(kept(one) - kept(other)) <= 0.01 * kept(other)


def test_noise_is_not_change() -> None:
    """A still scene: after the first frame there is nothing to see but noise."""
    clip = noisy(scene(6, False), 0.05)
    for loss in (0.02, None):
        info = PixelDiffSelector().select(clip, GRID, 1.0, loss)
        assert info.gazing_mask is not None
        first, *later = torch.cat(info.gazing_mask, dim=2)[0].sum(dim=1).tolist()
        assert max(later) <= 3 < first
        assert kept(info) < 0.35 * kept(PixelDiffSelector(noise_floor=False).select(clip, GRID, 1.0, loss))


def test_fewer_patches_show_a_noisy_clip_as_well() -> None:
    """Errors against the clean clip, at a tight stop rule."""
    clean = scene(5, True)
    seen, task = noisy(clean, 0.06), MosaicTask(GRID)

    def measured(floor: bool) -> tuple[int, float]:
        info = PixelDiffSelector(floor).select(seen, GRID, 1.0, 0.02)
        result = task(task.normalize(seen), info, reference=task.normalize(clean))
        return kept(info), float(result.loss)

    (patches, loss), (more, loss_of_more) = measured(True), measured(False)
    assert patches < 0.5 * more
    assert loss < loss_of_more
    shape = seen.shape[:2]
    best = search_mosaic(
        task,
        task.normalize(seen),
        torch.full(shape, loss),
        torch.full(shape, GRID.size),
        reference=task.normalize(clean),
    )
    assert int((best.ids >= 0).sum()) <= patches


def test_a_clip_alone_gives_the_same_and_later_frames_change_nothing() -> None:
    clips = torch.cat([noisy(scene(4, True, seed=seed), strength) for seed, strength in enumerate((0.0, 0.02, 0.1))])
    together = PixelDiffSelector().select(clips, GRID, 0.5, 0.03)
    assert together.gazing_mask is not None
    masks = torch.cat(together.gazing_mask, dim=2)
    for row in range(3):
        alone = PixelDiffSelector().select(clips[row : row + 1, :3], GRID, 0.5, 0.03)
        assert alone.gazing_mask is not None
        assert torch.equal(torch.cat(alone.gazing_mask, dim=2)[0], masks[row, :3])
