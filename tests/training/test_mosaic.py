"""The mosaic task and the greedy search on it."""

from __future__ import annotations

import pytest
import torch

from autogaze_mllm import AutoGazeImageProcessor, InputError, PatchGrid
from autogaze_mllm.gaze.pictures.mosaic import rebuild
from autogaze_mllm.training.config import SearchConfig
from autogaze_mllm.training.hints import AuxiliaryHead, token_shares
from autogaze_mllm.training.objective import search_online, soft_targets
from autogaze_mllm.training.search.candidates import search_by_candidates
from autogaze_mllm.training.search.greedy import ExplorationNoise, SearchResult, search_mosaic
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask, MosaicWalk

from ..helpers.training_models import busy_clip, small_gaze

GRID = PatchGrid.of("32+64+112", 16)


def clips(count: int = 2, frames: int = 3, side: int = 112) -> torch.Tensor:
    """(count, frames, 3, side, side) in [0, 1]."""
    stacked = [torch.from_numpy(busy_clip(seed, frames, side)).permute(0, 3, 1, 2) for seed in range(count)]
    return torch.stack(stacked).float() / 255


def task(measure: str = "l1") -> MosaicTask:
    return MosaicTask(GRID, AutoGazeImageProcessor(), measure)  # type: ignore[arg-type]


def info_of(frames: list[list[int]], grid: PatchGrid = GRID) -> dict[str, torch.Tensor]:
    positions = torch.tensor([[i + t * grid.size for t, ids in enumerate(frames) for i in ids]])
    return {
        "gazing_pos": positions,
        "if_padded_gazing": torch.zeros_like(positions, dtype=torch.bool),
        "num_gazing_each_frame": torch.tensor([len(ids) for ids in frames]),
    }


def searched(video: torch.Tensor, target: float = 0.02, most: int = 40) -> SearchResult:
    shape = video.shape[:2]
    return search_mosaic(task(), video, torch.full(shape, target), torch.full(shape, most))


@pytest.mark.parametrize("measure", ["l1", "l2"])
def test_losses_are_those_of_the_painted_picture(measure: str) -> None:
    """After every entry, against painting everything anew; fine patches first, coarse ones over what is left."""
    frames, mosaic = clips(1, 2), task(measure)
    chosen = [[30, 5, 21, 0, 1], [2, 60, 14]]
    result = mosaic(mosaic.normalize(frames), info_of(chosen))
    entry = 0
    for t, ids in enumerate(chosen):
        for count in range(1, len(ids) + 1):
            so_far = [*chosen[:t], ids[:count]]
            masks = [torch.zeros(1, t + 1, n) for n in GRID.counts]
            for number, kept in enumerate(so_far):
                full = torch.zeros(GRID.size)
                full[kept] = 1
                for mask, part in zip(masks, full.split(list(GRID.counts)), strict=True):
                    mask[0, number] = part
            painted = mosaic.normalize(rebuild(frames[:, : t + 1], masks, GRID)[:, t])
            off = painted - mosaic.normalize(frames[:, t])
            expected = off.abs().mean() if measure == "l1" else off.square().mean()
            assert float(result.task_losses[0, entry]) == pytest.approx(float(expected), rel=1e-4)
            entry += 1
        assert torch.allclose(result.reconstruction[:, t], painted, atol=1e-5)
        assert float(result.frame_losses[0, t]) == pytest.approx(float(expected), rel=1e-4)
    assert torch.equal(result.task_losses_mask, torch.ones(1, 8))
    assert result.reward.tolist() == (-result.frame_losses).tolist()
    assert result.traj_len_each_reward.tolist() == [5, 8]
    assert result.kept.tolist() == [[5, 3]]
    assert result.gazing_ratio == pytest.approx(8 / (2 * GRID.size))


def test_gains_are_what_painting_takes_away() -> None:
    """For every patch of the grid, in the middle of a frame that has patches of all scales already."""
    mosaic = task()
    video = mosaic.normalize(clips(1, 2))
    before = [[0, 3, 25, 7], [1, 40, 12]]
    walk = MosaicWalk(mosaic, video)
    for number, ids in enumerate(before):
        frame = walk.next_frame()
        for index in ids:
            frame.paint(torch.tensor([index]), torch.tensor([True]))
        if number == 0:
            walk.finish(frame)
    gains = frame.gains()[0]
    here = float(mosaic(video, info_of(before)).frame_losses[0, 1])
    for index in range(GRID.size):
        if index in before[1]:
            assert gains[index] == -torch.inf
            continue
        after = float(mosaic(video, info_of([before[0], [*before[1], index]])).frame_losses[0, 1])
        assert float(gains[index]) == pytest.approx(here - after, abs=2e-6)


def test_greedy_takes_the_best_patch_that_trying_all_finds() -> None:
    video = task().normalize(clips(2, 2))
    targets, budgets = torch.full((2, 2), 0.05), torch.full((2, 2), 6)
    fast = search_mosaic(task(), video, targets, budgets)
    slow = search_by_candidates(task(), video, targets, budgets)
    assert fast.counts == slow.counts
    assert torch.allclose(fast.losses, slow.losses, atol=1e-5)
    assert torch.equal(fast.ids, slow.ids)


def test_greedy_stops_at_the_loss_and_at_the_budget() -> None:
    video = task().normalize(clips(3, 3))
    found = searched(video, target=0.1, most=12)
    for ids, losses in zip(found.ids.split(found.counts, 1), found.losses.split(found.counts, 1), strict=True):
        for row_ids, row_losses in zip(ids, losses, strict=True):
            kept = row_losses[row_ids >= 0]
            assert 1 <= len(kept) <= 12
            assert len(set(row_ids[row_ids >= 0].tolist())) == len(kept)
            assert (kept[1:] < kept[:-1]).all()
            assert (kept[:-1] > 0.1).all()
    measured = task()(video, found.info(GRID))
    last = torch.stack([part[:, -1] for part in found.losses.split(found.counts, dim=1)], dim=1)
    assert torch.allclose(measured.frame_losses, last, atol=1e-6)


def test_a_clip_alone_has_the_same_labels() -> None:
    video = task().normalize(clips(3, 2))
    together = searched(video)
    for row in range(3):
        alone = searched(video[row : row + 1])
        kept = together.ids[row][together.ids[row] >= 0]
        assert torch.equal(kept, alone.ids[0][alone.ids[0] >= 0])


def test_a_still_video_costs_one_patch_a_frame() -> None:
    video = task().normalize(clips(1, 1).expand(-1, 4, -1, -1, -1))
    found = searched(video, target=0.05, most=GRID.size)
    assert found.counts[1:] == [1, 1, 1]


def test_disturbed_search_goes_on_from_the_wrong_patches() -> None:
    video = task().normalize(clips(2, 2))
    shape, draws = video.shape[:2], torch.rand(2, 2, GRID.size, 2, generator=torch.Generator().manual_seed(0))
    noise = ExplorationNoise(torch.tensor([0.0, 0.9]), draws)
    found = search_mosaic(task(), video, torch.zeros(shape), torch.full(shape, 15), noise, with_gains=True)
    plain = search_mosaic(task(), video, torch.zeros(shape), torch.full(shape, 15))
    assert torch.equal(found.ids[0][found.ids[0] >= 0], plain.ids[0][plain.ids[0] >= 0])
    assert found.ids[1, :5].tolist() != plain.ids[1, :5].tolist()
    measured = task()(video, found.info(GRID))
    real = found.ids >= 0
    assert torch.allclose(measured.task_losses[real], found.losses[real], atol=1e-6)
    targets = soft_targets(found, SearchConfig())
    assert torch.allclose(targets.sum(-1), torch.ones_like(targets[..., 0]))
    for row in range(2):
        start = 0
        for count in found.counts:
            for number in range(count):
                earlier = found.ids[row, start : start + number]
                assert (targets[row, start + number, earlier[earlier >= 0]] == 0).all()
            start += count


def test_searched_labels_depend_on_the_clip_s_own_seed_only() -> None:
    video = task().normalize(clips(3, 2))
    together = search_online(task(), video, [5, 6, 7], SearchConfig(target=(0.05, 0.5)))
    alone = search_online(task(), video[1:2], [6], SearchConfig(target=(0.05, 0.5)))
    assert torch.equal(together.ids[1][together.ids[1] >= 0], alone.ids[0][alone.ids[0] >= 0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="not known"):
        task("psnr")
    with pytest.raises(InputError, match="at the size of"):
        task()(torch.zeros(1, 1, 3, 64, 64), info_of([[0]]))
    with pytest.raises(InputError, match="not among"):
        task()(torch.zeros(1, 1, 3, 112, 112), info_of([[0]]), frames=[1])
    assert torch.allclose(task().denormalize(task().normalize(clips())), clips(), atol=1e-5)


def test_hints_know_places_and_what_they_are_worth() -> None:
    """Shares of the tokens in each patch, against counting pixels; and both hints come down when followed."""
    shares = token_shares(GRID, 7)
    assert shares.shape == (GRID.size, 49)
    for index in (0, 3, 4, 19, 20, 68):
        scale, row, column = (int(part) for part in GRID.locate(torch.tensor(index)))
        pixels = torch.zeros(112, 112)
        side = 16 * 112 // GRID.scales[scale][0]
        pixels[row * side : (row + 1) * side, column * side : (column + 1) * side] = 1
        counted = pixels.unflatten(0, (7, 16)).unflatten(2, (7, 16)).sum(dim=(1, 3)).flatten()
        assert torch.allclose(shares[index], counted / counted.sum(), atol=1e-5)

    gaze = small_gaze().train()
    mosaic = MosaicTask(gaze.grid, gaze.processor)
    frames = clips(2, 2, 64)
    found = search_mosaic(
        mosaic, mosaic.normalize(frames), torch.full((2, 2), 0.02), torch.full((2, 2), 10), with_gains=True
    )
    targets = soft_targets(found, SearchConfig())
    head = AuxiliaryHead(gaze, gaze.grid, 3e-4)
    optimizer = torch.optim.Adam([*gaze.parameters(), *head.parameters()], lr=5e-3)
    curve = []
    for _ in range(25):
        with head:
            gaze.score(mosaic.normalize(frames), found.info(gaze.grid), match_generation=True, targets=targets)
        hints = head.measure(found, targets)
        assert float(hints.attention.detach()) > 0  # a cross-entropy is never below the entropy
        curve.append((float(hints.worth.detach()), float(hints.attention.detach())))
        optimizer.zero_grad()
        hints.total.backward()
        optimizer.step()
    assert curve[-1][0] < 0.5 * curve[0][0]
    assert curve[-1][1] < 0.5 * curve[0][1]


@pytest.mark.parametrize("measure", ["visible", "l3"])
def test_what_is_no_loss_is_refused(measure: str) -> None:
    """What gains may count besides is not something to train for."""
    with pytest.raises(InputError, match=r"is not known; known: l1, l2$"):
        MosaicTask(PatchGrid.of("32+64", 16), measure=measure)
