"""Reward-guided decoding: the model's probabilities beside what patches really bring, against a plain reference."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm import GreedySelector
from autogaze_mllm.cli import main
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig, BudgetConfig
from autogaze_mllm.gaze.autogaze.decoding import generation
from autogaze_mllm.gaze.autogaze.decoding.guidance import Guide
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.pictures.mosaic import BLANK, PatchPainter
from autogaze_mllm.gaze.ratio import patches_per_frame
from autogaze_mllm.gaze.selection import GazingInfo, read_selection
from autogaze_mllm.gaze.selectors.base import stop_rule
from autogaze_mllm.training.on_device.calibrate import reached
from autogaze_mllm.training.search.greedy import search_mosaic
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.training.validation import select
from autogaze_mllm.video.writer import write_video
from reference_decoder import Guide as PlainGuide
from reference_decoder import Reference

from ...helpers.gaze_models import config_dict, same_info, same_state
from ...helpers.training_models import busy_clip

UNSURE = 1e-5


def guided_model(seed: int, weight: float = 1.5, **keys: object) -> tuple[AutoGaze, Reference]:
    """A small random model that is guided, and its plain reference; the model sees every frame."""
    config = config_dict(random.Random(seed))
    config["gaze_model_config"]["vision_model_config"]["temporal_patch_size"] = 1
    config |= {"reconstruction_task": "mosaic", "reward_guidance": weight, **keys}
    torch.manual_seed(seed)
    model = AutoGaze(AutoGazeConfig.from_dict(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model, Reference(config, model.state_dict())


def pictures_of(model: AutoGaze, clips: int, frames: int, seed: int = 0) -> torch.Tensor:
    """Things that move, as the model sees them: (clips, frames, 3, S, S)."""
    side = model.grid.scales[-1][0]
    busy = np.stack([busy_clip(seed + number, frames) for number in range(clips)])
    shown = torch.from_numpy(busy).permute(0, 1, 4, 2, 3).float() / 255
    small = torch.nn.functional.interpolate(shown.flatten(0, 1), size=(side, side), mode="area").unflatten(
        0, (clips, -1)
    )
    return model.processor.prepare(small)


def visible(painter: PatchPainter, difference: torch.Tensor) -> float:
    """Squared error of pictures (1, 3, S, S) that are apart by `difference`, less what would go unseen: 0.3 in each
    place, the pieces that the borders of all patches cut a picture into."""
    one_each = torch.eye(painter.grid.size).split(list(painter.grid.counts), dim=1)
    covers = torch.cat([painter.spread(part, scale)[part.sum(1) > 0] for scale, part in enumerate(one_each)])
    squared, sizes = difference.square().mean(dim=1)[0], torch.ones(1, 1)
    for axis in (1, 2):
        border = (covers.diff(dim=axis) != 0).any(dim=0).any(dim=2 - axis)
        piece = torch.cat([torch.zeros(1), border.cumsum(0)]).long()
        squared = torch.zeros(int(piece.max()) + 1, squared.shape[1]).index_add(0, piece, squared).T
        sizes = (sizes * piece.bincount()[:, None]).T
    return float((squared - 0.09 * sizes).clamp(min=0).sum() / difference[0, 0].numel())


def tried(model: AutoGaze, video: torch.Tensor) -> PlainGuide:
    """Gains of one clip (1, T, 3, S, S) by painting every patch and measuring the whole picture."""
    painter, grid = PatchPainter(model.grid, video.device), model.grid
    blank = model.processor.normalize(torch.full_like(video[:, 0], BLANK))

    def apart(kept: list[list[int]]) -> torch.Tensor:
        canvas = blank
        for frame, ids in zip(video.unbind(1), kept, strict=False):
            mask = torch.zeros(1, grid.size)
            mask[0, ids] = 1
            canvas = painter.paint(canvas, painter.pictures(frame), list(mask.split(list(grid.counts), dim=1)))
        return canvas - video[:, len(kept) - 1]

    def counted(difference: torch.Tensor) -> float:
        return float(difference.abs().mean()) if model.config.least_gain is None else visible(painter, difference)

    def measure(kept: list[list[int]]) -> tuple[torch.Tensor, float]:
        now = apart(kept)
        gains = [counted(now) - counted(apart([*kept[:-1], [*kept[-1], i]])) for i in range(grid.size)]
        return torch.tensor(gains), float(now.abs().mean())

    return PlainGuide(model.config.reward_guidance, measure, max(model.config.least_gain or 0.0, 1e-6))


def kept_in(info: GazingInfo, row: int, grid: PatchGrid) -> list[list[int]]:
    """Indices that a row keeps, frame by frame, in the order in which they were chosen."""
    found = read_selection(info, grid, "test")
    parts = zip(found.index[row].split(found.counts), found.keep[row].split(found.counts), strict=True)
    return [ids[keep].tolist() for ids, keep in parts]


@pytest.mark.parametrize("seed", range(14))
def test_it_is_the_plain_reference(seed: int) -> None:
    """Rows in a batch choose what a reference chooses that decodes them alone and paints whole pictures."""
    rng = random.Random(seed)
    least = rng.choice([{}, {"least_gain": 0.003}, {"least_gain": 0.02}])
    model, reference = guided_model(seed, rng.choice([0.5, 1.5, 4.0]), **least)
    video = pictures_of(model, 3, 4, seed)
    ratio, need = rng.choice([(1.0, 0.3), (0.5, 0.5), (0.4, None), (1.0, 0.9)])
    info = model.generate(video, ratio, need)
    budgets = patches_per_frame(ratio, model.grid.size, 1, 4)[0].tolist()
    wanted = None if need is None else torch.full((1, 4), need)
    for row in range(len(video)):
        single = video[row : row + 1]
        found = reference.generate(single, budgets, wanted, guide=tried(model, single))
        if found.margin < UNSURE:
            pytest.skip("a decision is too close for float32")
        theirs = [ids[ids != model.grid.size].tolist() for ids in found.ids[0].split(found.counts)]
        assert kept_in(info, row, model.grid) == theirs


def test_gain_alone_is_greedy_search() -> None:
    """With all the weight on what a patch brings, the search that labels come from is what is left."""
    model, _ = guided_model(3, weight=1e9)
    task, video = MosaicTask(model.grid, model.processor), pictures_of(model, 2, 4)
    found = search_mosaic(task, video, torch.full((2, 4), 0.3), torch.full((2, 4), model.grid.size))
    guided, searched = task(video, model.generate(video, 1.0, 0.3)), task(video, found.info(model.grid))
    torch.testing.assert_close(guided.frame_losses, searched.frame_losses, rtol=1e-3, atol=1e-4)
    assert torch.equal(guided.kept, searched.kept)


def test_the_stop_rule_is_measured() -> None:
    """Random weights predict nothing, and yet each frame ends with the patch that brings it to what was asked for."""
    shortened = 0
    for seed, need in itertools.product(range(4), (0.02, 0.1, 0.3)):
        model, _ = guided_model(seed)
        task, video = MosaicTask(model.grid, model.processor), pictures_of(model, 3, 4)
        info = model.generate(video, 1.0, need)
        assert (task(video, info).frame_losses <= need).all()
        for row in range(3):
            kept = kept_in(info, row, model.grid)
            for t, ids in enumerate(kept):
                if len(ids) > 1:
                    shorter = [*kept[:t], ids[:-1]]
                    assert losses_of(task, video[row, : t + 1], shorter)[t] > need
                    shortened += 1
    assert shortened > 3


def losses_of(task: MosaicTask, clip: torch.Tensor, kept: list[list[int]]) -> list[float]:
    counts = [len(ids) for ids in kept]
    positions = [i + t * task.grid.size for t, ids in enumerate(kept) for i in ids]
    info = {
        "gazing_pos": torch.tensor([positions]),
        "if_padded_gazing": torch.zeros(1, len(positions), dtype=torch.bool),
        "num_gazing_each_frame": torch.tensor(counts),
    }
    return task(clip[None], info).frame_losses[0].tolist()


def test_what_stands_still_costs_a_patch_a_frame() -> None:
    """Even without a stop rule: no further patch would change the picture."""
    model, _ = guided_model(1)
    video = pictures_of(model, 1, 1).expand(-1, 5, -1, -1, -1)
    counts = [len(ids) for ids in kept_in(model.generate(video, 1.0, None), 0, model.grid)]
    assert counts[0] > 1 and counts[1:] == [1] * 4
    assert len(kept_in(model.generate(video, 1.0, None, reward_guidance=0), 0, model.grid)[1]) == model.grid.size


@pytest.mark.parametrize("seed", range(4))
def test_however_it_is_called_the_result_is_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of time and of the batch, and on the path of accelerators."""
    model, _ = guided_model(seed)
    video, need = pictures_of(model, 3, 6, seed), (0.4 if seed % 2 else None)
    whole = model.generate(video, 0.6, need, return_state=True)
    same_info(whole, model.generate(video, 0.6, need, micro_batch=1))
    first = model.generate(video[:, :2], 0.6, need, return_state=True)
    before = first.state.canvas.clone()
    second = model.generate(video[:, 2:], 0.6, need, state=first.state, return_state=True)
    assert torch.equal(first.state.canvas, before)
    for row in range(3):
        parts = kept_in(first, row, model.grid) + kept_in(second, row, model.grid)
        assert parts == kept_in(whole, row, model.grid)
    same_state(second.state, whole.state)
    torch.testing.assert_close(second.state.canvas, whole.state.canvas)
    monkeypatch.setattr(generation, "_on_host", lambda device, capture: False)
    guides: list[Guide] = []
    start = Guide.begin
    monkeypatch.setattr(Guide, "begin", lambda self, watched: (guides.append(self), start(self, watched))[1])
    elsewhere = model.generate(video, 0.6, need, return_state=True)
    same_info(whole, elsewhere)
    same_state(whole.state, elsewhere.state)
    torch.testing.assert_close(whole.state.canvas, elsewhere.state.canvas)
    (guide,) = guides
    assert not guide.video.numel() and not guide.pictures, "an engine that is kept must not keep a call's video"


def test_a_model_of_the_published_loss_stops_by_what_it_predicts() -> None:
    """The picture's loss says nothing about a VideoMAE's: gains guide the choice alone."""
    model, _ = guided_model(2, reconstruction_task="videomae")
    video = pictures_of(model, 2, 3)
    everything = model.generate(video, 1.0, None)
    assert int((~everything.if_padded_gazing).sum()) == 2 * 3 * model.grid.size  # nothing ends for lack of a gain
    soon, never = model.generate(video, 1.0, 1e9), model.generate(video, 1.0, -1e9)
    assert int((~soon.if_padded_gazing).sum()) == 2 * 3
    same_info(never, everything)


def test_nothing_that_is_drawn_is_guided() -> None:
    model, _ = guided_model(4)
    video = pictures_of(model, 1, 2)

    def drawn(**options: float) -> GazingInfo:
        return model.generate(video, 0.5, do_sample=True, generator=torch.Generator().manual_seed(0), **options)

    same_info(drawn(), drawn(reward_guidance=0))


def test_training_looks_at_the_model_alone() -> None:
    """What it has learnt would not show beside what is measured."""
    model, _ = guided_model(4)
    video = pictures_of(model, 1, 3)
    budget = BudgetConfig(ratio=0.5, use_requirement_inference=True, requirement=0.0)
    validated = select(model, video, budget)[0]
    same_info(validated, model.generate(video, 0.5, 0.0, reward_guidance=0))
    assert kept_in(validated, 0, model.grid) != kept_in(model.generate(video, 0.5, 0.0), 0, model.grid)


def test_the_stop_rule_is_calibrated_alone() -> None:
    """Guided, every model stops where it should, and the head would be scaled by nothing."""
    gaze = AutoGaze.from_pretrained()
    shown = torch.from_numpy(np.stack([busy_clip(seed, 6, side=224) for seed in range(2)])).permute(0, 1, 4, 2, 3)
    task, found = MosaicTask(gaze.grid, gaze.processor), []
    for weight in (gaze.config.reward_guidance, 0.0):
        gaze.config = dataclasses.replace(gaze.config, reward_guidance=weight)
        found.append(reached(gaze, task, shown, 0.05))
    assert found[0] is not None and found[0] == found[1]


def test_what_cannot_be_guided_is_refused() -> None:
    model, _ = guided_model(5)
    video = pictures_of(model, 1, 2)
    alone = model.generate(video, 0.5, return_state=True, reward_guidance=0)
    with pytest.raises(InputError, match="not guided: give reward_guidance=0"):
        model.generate(video, 0.5, state=alone.state)
    model.generate(video, 0.5, state=alone.state, reward_guidance=0)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="reward_guidance must be 0 or more"):
            model.generate(video, 0.5, reward_guidance=weight)
    stored = model.config.to_dict()
    assert AutoGazeConfig.from_dict(stored) == model.config
    for value, said in ((-1, "must be 0 or more"), ("much", "reward_guidance")):
        with pytest.raises(InputError, match=said):
            AutoGazeConfig.from_dict({**stored, "reward_guidance": value})
    stored["gaze_model_config"]["vision_model_config"]["temporal_patch_size"] = 2
    with pytest.raises(InputError, match="every frame"):
        AutoGazeConfig.from_dict(stored)
    assert "reward_guidance" not in AutoGazeConfig().to_dict()  # as published


def gains_along(model: AutoGaze, clip: torch.Tensor, kept: list[list[int]]) -> list[list[float]]:
    """What each kept patch of one clip brought, and after the last of a frame what the best one left would have."""
    measure = tried(model, clip[None]).measure
    found = []
    for t, ids in enumerate(kept):
        before = [measure([*kept[:t], ids[:count]])[0] for count in range(len(ids) + 1)]
        found.append([float(g[i]) for g, i in zip(before, ids, strict=False)] + [float(before[-1].max())])
    return found


def test_a_frame_ends_when_no_patch_brings_enough() -> None:
    """Of what can be seen; none is chosen that does not, but a frame's only one. The model itself stays as it is."""
    model, _ = guided_model(6)
    video, least = pictures_of(model, 2, 4), 0.01
    ending = model.ending_at(least)
    info = ending.generate(video, 1.0, None)
    for row in range(2):
        kept = kept_in(info, row, model.grid)
        for gains in gains_along(ending, video[row], kept):
            assert gains[-1] <= least + 1e-6
            assert len(gains) == 2 or min(gains[:-1]) > least - 1e-6
    assert int((~model.generate(video, 1.0, None).if_padded_gazing).sum()) > int((~info.if_padded_gazing).sum())
    frames = MosaicTask(model.grid, model.processor).denormalize(video).clamp(0, 1)
    handed_on = ending.select(frames, model.grid, 1.0, None)
    for row in range(2):
        assert kept_in(handed_on, row, model.grid) == [sorted(ids) for ids in kept_in(info, row, model.grid)]
    assert model.config.least_gain is None and ending.identity() != model.identity()
    assert AutoGazeConfig.from_dict(ending.config.to_dict()).least_gain == least
    with pytest.raises(InputError, match="needs reward_guidance above 0"):
        AutoGazeConfig(least_gain=0.1)
    with pytest.raises(InputError, match="does not measure what patches bring"):
        AutoGaze().ending_at(0.1)


@pytest.mark.parametrize("loss", [None, 0.4])
def test_greedy_takes_what_is_seen_to_bring_most(loss: float | None) -> None:
    """Until nothing brings enough, or the loss of the whole picture is reached; measured by painting each patch. A
    frame's patches are handed on in raster order, as pixel-diff's are."""
    model, _ = guided_model(6, least_gain=0.01)
    frames = torch.from_numpy(np.stack([busy_clip(seed, 3, side=model.grid.scales[-1][0]) for seed in range(2)]))
    frames = frames.permute(0, 1, 4, 2, 3).float() / 255
    selector = am.GreedySelector(0.01)
    shown = selector.processor.prepare(frames)
    info = selector.select(frames, model.grid, 1.0, loss)
    for row in range(2):
        kept, measure = kept_in(info, row, model.grid), tried(model, shown[row : row + 1]).measure
        for t, ids in enumerate(kept):
            wanted: list[int] = []
            while True:
                gains, left = measure([*kept[:t], wanted])
                if wanted and (gains.max() <= 0.01 or (loss is not None and left <= loss)):
                    break
                wanted.append(int(gains.argmax()))
            assert ids == sorted(wanted)


def test_the_setting_reaches_the_selector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`gain` ends frames of a video file; the selector's own loss ends nothing then, unless it is given."""
    path = tmp_path / "clip.mp4"
    write_video(path, busy_clip(0, 8, side=96), fps=8)
    settings = am.VideoSettings(frames=8, ratio=1.0)
    greedy = am.GreedySelector()

    def patches(gaze: am.Selector, **given: float) -> int:
        return len(am.gaze_video(path, gaze, settings.changed(**given)))

    everything = patches(greedy, loss=0)
    assert patches(greedy, gain=0.002) == patches(am.GreedySelector(0.002), loss=0) < patches(greedy, gain=0.0)
    assert patches(greedy) < patches(greedy, gain=0.0) < everything  # its own loss is 0.2; some of it goes unseen
    assert patches(greedy, gain=0.0, loss=1.0) < patches(greedy, gain=0.0)
    assert stop_rule(None, greedy, settings.changed(gain=0.1)) is None
    with pytest.raises(InputError, match="pixel-diff does not measure what patches bring"):
        patches(am.PixelDiffSelector(), gain=0.1)
    assert main(["gaze", str(path), "--gaze", "random", "--gain", "0.1"]) == 2
    assert "random does not measure what patches bring" in capsys.readouterr().err
    assert main(["gaze", str(path), "--gaze", "bundled", "--gain", "0.002", "--json"]) == 0
    assert am.VideoSettings().to_dict().keys() == am.VideoSettings(gain=0.1).to_dict().keys() - {"gain"}
    kept = am.GreedySelector.restored(am.GreedySelector(0.5).store(tmp_path))
    assert kept.identity() == am.GreedySelector(0.5).identity() != am.GreedySelector().identity()
    with pytest.raises(InputError, match="least_gain must be 0 or more"):
        am.GreedySelector(-1)


def test_greedy_selects_what_the_search_finds() -> None:
    """On what it is shown, which is without noise; a clip's result is the one that it gives alone."""
    grid = PatchGrid.of("32+64", 16)
    rng = torch.Generator().manual_seed(0)
    clips = torch.from_numpy(np.stack([busy_clip(0, 4), busy_clip(1, 4)])).permute(0, 1, 4, 2, 3).float() / 255
    noisy = (clips + 0.06 * torch.randn(clips.shape, generator=rng)).clamp(0, 1)
    selector, task = GreedySelector(), MosaicTask(grid)
    for frames in (clips, noisy):
        shown = selector.processor.prepare(frames)
        for ratio, loss in ((1.0, 0.2), (0.3, None)):
            budgets = patches_per_frame(ratio, grid.size, 2, 4)
            found = search_mosaic(task, shown, torch.full((2, 4), loss or 0.0), budgets).info(grid)
            info = selector.select(frames, grid, ratio, loss)
            for row in range(2):
                assert kept_in(info, row, grid) == kept_in(GazingInfo(found), row, grid)
                alone = selector.select(frames[row : row + 1], grid, ratio, loss)
                assert kept_in(alone, 0, grid) == kept_in(info, row, grid)
    quiet, raw = (int((~selector.select(f, grid, 1.0, 0.3).if_padded_gazing).sum()) for f in (clips, noisy))
    assert raw < 3 * quiet  # it does not take noise for change
