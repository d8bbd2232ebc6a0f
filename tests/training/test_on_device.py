"""Training on packed clips: what is drawn, what is searched, the clock, and the whole recipe in small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from autogaze_mllm import AutoGaze, InputError
from autogaze_mllm.training.config import SearchConfig, TrainingConfig
from autogaze_mllm.training.data.degrade import add_noise, quantise
from autogaze_mllm.training.on_device.augment import TakeConfig, TakeSource
from autogaze_mllm.training.on_device.calibrate import calibrate, reached
from autogaze_mllm.training.on_device.loop import Clock, ClockTrainer, Stage, rate_at, stage_at
from autogaze_mllm.training.on_device.pack import PackedClip, read_pack
from autogaze_mllm.training.on_device.pool import PoolConfig, PoolSource, join
from autogaze_mllm.training.search.greedy import SearchResult, follow_mosaic, search_mosaic
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask

from ..helpers.training_models import busy_clip, small_gaze, write_clips

CPU = torch.device("cpu")
SCRIPTS = Path(__file__).parents[2] / "scripts"
PLAIN = TakeConfig(frames=4, strides=(1, 1), side=64, whole=1, generated=0, clean=1, cut=0, shake=0, hold=0, dark=0)


def packed(count: int = 3, frames: int = 8) -> list[PackedClip]:
    clips = [torch.from_numpy(busy_clip(seed, frames)).permute(0, 3, 1, 2).contiguous() for seed in range(count)]
    return [PackedClip(str(number), clip, (clip // 2,)) for number, clip in enumerate(clips)]


def noisy_pair(task: MosaicTask, rows: int = 3, frames: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """What is to be shown and what is seen of it, normalised."""
    clips = [torch.from_numpy(busy_clip(seed, frames)).permute(0, 3, 1, 2) for seed in range(rows)]
    shown = torch.stack(clips).float() / 255
    noise = 0.08 * torch.randn(shown.shape, generator=torch.Generator().manual_seed(1))
    return task.normalize(shown), task.normalize((shown + noise).clamp(0, 1))


def task() -> MosaicTask:
    gaze = small_gaze()
    return MosaicTask(gaze.grid, gaze.processor)


def search(
    mosaic: MosaicTask, seen: torch.Tensor, reference: torch.Tensor | None, target: float = 0.05, most: int = 20
) -> SearchResult:
    shape = seen.shape[:2]
    return search_mosaic(
        mosaic,
        seen,
        torch.full(shape, target),
        torch.full(shape, most),
        with_gains=True,
        reference=reference,
        above_floor=True,
    )


def test_the_video_itself_as_reference_changes_nothing() -> None:
    mosaic = task()
    shown, _ = noisy_pair(mosaic)
    alone, referred = search(mosaic, shown, None), search(mosaic, shown, shown)
    assert torch.equal(alone.ids, referred.ids)
    assert torch.equal(alone.losses, referred.losses)
    assert referred.floors is not None
    assert torch.equal(referred.floors, torch.zeros(3, 3))
    assert torch.equal(alone.excess, referred.excess)


def test_labels_against_the_clean_picture_spend_less_on_noise() -> None:
    mosaic = task()
    shown, seen = noisy_pair(mosaic)
    fooled, knowing = search(mosaic, seen, None), search(mosaic, seen, shown)
    fooled_loss = mosaic(seen, fooled.info(mosaic.grid), reference=shown).loss
    knowing_loss = mosaic(seen, knowing.info(mosaic.grid), reference=shown).loss
    assert int((knowing.ids >= 0).sum()) < 0.7 * int((fooled.ids >= 0).sum())
    assert (knowing_loss < fooled_loss + 0.01).all()
    assert torch.allclose(mosaic(seen, knowing.info(mosaic.grid), reference=shown).task_losses, knowing.losses)


def test_nothing_goes_below_the_floor() -> None:
    mosaic = task()
    shown, seen = noisy_pair(mosaic)
    found = search(mosaic, seen, shown, target=0.0)
    assert found.floors is not None
    assert (found.floors > 0.1).all()
    ends = [part[:, -1] for part in found.losses.split(found.counts, dim=1)]
    assert (torch.stack(ends, dim=1) >= found.floors - 1e-6).all()


def test_following_a_search_gives_what_it_found() -> None:
    mosaic = task()
    shown, seen = noisy_pair(mosaic)
    found = search(mosaic, seen, shown)
    followed = follow_mosaic(mosaic, seen, found.info(mosaic.grid), shown)
    assert followed.counts == found.counts
    for name in ("ids", "losses", "gains", "errors", "floors"):
        assert torch.equal(getattr(followed, name), getattr(found, name)), name


def test_rows_of_a_search_are_those_that_it_finds_alone() -> None:
    mosaic = task()
    shown, seen = noisy_pair(mosaic)
    found = search(mosaic, seen, shown)
    chosen = torch.tensor([2, 0])
    part = found.rows(chosen, found.entries())
    alone = search(mosaic, seen[chosen], shown[chosen])
    assert part.counts == alone.counts
    assert torch.equal(part.ids, alone.ids)
    assert torch.allclose(part.losses, alone.losses)
    real = part.ids >= 0
    assert part.gains is not None and alone.gains is not None
    assert torch.allclose(part.gains[real], alone.gains[real], atol=1e-6)


def test_joined_results_are_their_rows() -> None:
    mosaic = task()
    shown, seen = noisy_pair(mosaic)
    both = join([search(mosaic, seen[:1], shown[:1], 0.2), search(mosaic, seen[1:], shown[1:])])
    first = both.rows(torch.tensor([0]), both.entries())
    assert torch.equal(first.ids, search(mosaic, seen[:1], shown[:1], 0.2).ids)
    second = both.rows(torch.tensor([1, 2]), both.entries())
    assert torch.equal(second.ids, search(mosaic, seen[1:], shown[1:]).ids)


def test_plain_takes_are_runs_of_the_clips() -> None:
    clips = packed()
    shown, seen = TakeSource(clips, [], CPU, seed=3).draw(12, PLAIN)
    assert torch.equal(shown, seen)
    frames = torch.cat([clip.clean for clip in clips]).float()
    exposed = 0
    for take in shown.float():
        ways = torch.cat([take, take.flip(-1)])
        off = (ways[:, None] - frames).abs().mean(dim=(2, 3, 4)).amin(dim=1)
        exposed += int(min(off[:4].mean(), off[4:].mean()) > 2)  # brighter or darker than the clip
    assert exposed < 12
    again, _ = TakeSource(clips, [], CPU, seed=3).draw(12, PLAIN)
    assert torch.equal(shown, again)


def test_disturbed_takes_show_the_same_places() -> None:
    clips = [PackedClip(c.name, c.clean) for c in packed()]
    settings = TakeConfig(frames=4, side=64, clean=0.0, generated=0, dark=0)
    shown, seen = TakeSource(clips, [], CPU, seed=1).draw(16, settings)
    assert not torch.equal(shown, seen)
    off = (shown.float() - seen.float()).abs().mean(dim=(1, 2, 3, 4))
    other = (shown.float() - seen.roll(1, 0).float()).abs().mean(dim=(1, 2, 3, 4))
    assert float(off.mean()) < 0.6 * float(other.mean())


def test_noise_has_the_strength_that_is_asked_for() -> None:
    grey = torch.full((2, 2, 3, 64, 64), 0.5)
    strength = torch.tensor([0.02, 0.08])
    noisy = add_noise(grey, strength, torch.zeros(2), torch.ones(2), torch.Generator().manual_seed(0))
    assert torch.allclose((noisy - 0.5).std(dim=(1, 2, 3, 4)), strength, rtol=0.05)


def test_quantising_takes_away_more_the_coarser_it_is() -> None:
    frames = torch.from_numpy(busy_clip(0, 2)).permute(0, 3, 1, 2)[None].float() / 255
    frames = frames.expand(4, -1, -1, -1, -1)
    off = (quantise(frames, torch.tensor([0.0, 1e-4, 0.05, 0.2])) - frames).abs().mean(dim=(1, 2, 3, 4))
    assert off[0] == 0
    assert off[1] < 1e-3
    assert off[1] < off[2] < off[3]


def test_the_clock_decides_rate_and_stage() -> None:
    stages = [Stage(name, share, PoolConfig(2, 2, PLAIN), 1) for name, share in (("a", 1.0), ("b", 3.0))]
    assert [stage_at(p, stages).name for p in (0.0, 0.24, 0.26, 1.0)] == ["a", "a", "b", "b"]
    rates = [rate_at(p, 1.0) for p in np.linspace(0.03, 1, 20)]
    assert rates[0] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.03
    clock = Clock(100.0, spent=99.0)
    assert clock.over(2.0) and not clock.over(0.1)
    assert clock.progress == pytest.approx(0.99, abs=0.005)


def trainer(run: Path, gaze: AutoGaze, seconds: float, steps: int | None) -> ClockTrainer:
    stages = [
        Stage("search", 0.5, PoolConfig(4, 2, PLAIN), 2),
        Stage("own", 0.5, PoolConfig(4, 2, PLAIN, own=0.5), 2),
    ]
    settings = TrainingConfig(hint_weight=0.0, lr=1e-3, search=SearchConfig(max_patches=20), relative_prediction=0.1)
    takes = TakeSource(packed(), [], CPU, seed=0)
    return ClockTrainer(gaze, takes, settings, stages, run, seconds, steps=steps)


def test_a_run_goes_on_with_the_time_it_had_left(tmp_path: Path) -> None:
    gaze = small_gaze()
    trainer(tmp_path, gaze, 60.0, 4).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert {line["stage"] for line in lines} == {"search", "own"}
    trained = {name: value.clone() for name, value in gaze.state_dict().items()}
    later = small_gaze(seed=5)
    second = trainer(tmp_path, later, 60.0, 6)
    assert second.clock.step == 4 and second.clock.spent > 0
    assert all(torch.equal(value, trained[name]) for name, value in later.state_dict().items())
    second.train()
    assert second.clock.step == 6


def test_a_run_that_is_told_to_end_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, small_gaze(), 600.0, None)
    step = run._step

    def told(batch: object) -> object:
        if run.clock.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    monkeypatch.setattr(run, "_step", told)
    run.train()
    assert run.stopped
    assert run.clock.step == 3
    assert trainer(tmp_path, small_gaze(1), 600.0, None).clock.step == 3


def test_training_by_the_clock_learns(tmp_path: Path) -> None:
    run = trainer(tmp_path, small_gaze(), 300.0, 60)
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, last = (
        np.mean([line["policy_loss"] - line["label_entropy"] for line in part]) for part in (lines[:6], lines[-6:])
    )
    assert last < 0.8 * first


def test_own_clips_are_labelled_where_the_model_went() -> None:
    gaze = small_gaze()
    source = PoolSource(TakeSource(packed(), [], CPU), gaze, MosaicTask(gaze.grid, gaze.processor), SearchConfig())
    own, searched = source.draw(PoolConfig(4, 2, PLAIN, own=0.5))
    assert len(own.seen) == len(searched.seen) == 2
    assert gaze.training  # as it was
    for pool in (own, searched):
        assert pool.found.gains is not None
        best = pool.found.gains[:, 0].argmax(dim=1)
        assert torch.equal(best, pool.found.ids[:, 0]) == (pool is searched)


def test_calibration_scales_the_head_and_nothing_else() -> None:
    gaze = small_gaze().eval()
    mosaic = MosaicTask(gaze.grid, gaze.processor)
    before = {name: value.clone() for name, value in gaze.state_dict().items()}
    frames, _ = TakeSource(packed(), [], CPU).draw(4, PLAIN)
    head = "gazing_model.gaze_decoder.task_loss_prediction_head.weight"
    with torch.no_grad():
        gaze.gazing_model.gaze_decoder.task_loss_prediction_head.weight.abs_()
    loss = 0.3
    measured = reached(gaze, mosaic, frames, loss)
    values = calibrate(gaze, mosaic, frames, losses=(loss,), rounds=1)
    if measured is None:
        assert values == {}
        return
    assert values["factor"] == pytest.approx(measured)
    for name, value in gaze.state_dict().items():
        wanted = before[name].abs() * measured if name == head else before[name]
        assert torch.allclose(value, wanted)


def test_a_folder_without_clips_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no packed clips"):
        read_pack(tmp_path, "train", CPU)


@pytest.mark.slow
def test_the_whole_recipe_in_small(tmp_path: Path) -> None:
    """Pack, train, calibrate; the result is a gaze model of the published size that reads."""
    write_clips(tmp_path / "videos", 2, frames=12)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}

    def script(name: str, *arguments: str) -> str:
        command = [sys.executable, str(SCRIPTS / name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pack = str(tmp_path / "pack")
    script(
        "pack_clips.py", str(tmp_path / "videos"), pack, "--generated", "1", "--generated-frames", "8", "--workers", "1"
    )
    clips = read_pack(pack, "train", CPU)
    assert [len(clip) for clip in clips] == [12, 12]
    assert all(len(clip.stored) == 1 for clip in clips)
    printed = script("train_gaze_real.py", pack, str(tmp_path / "run"), "--small")
    assert "done after" in printed
    model = AutoGaze.from_pretrained(tmp_path / "run" / "gaze")
    stored = load_file(tmp_path / "run" / "gaze" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert sum(p.numel() for p in model.parameters()) == 3_258_240
    stages = [json.loads(line)["stage"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["short", "search", "own"]
    assert json.loads((tmp_path / "run" / "calibration.json").read_text()) is not None
