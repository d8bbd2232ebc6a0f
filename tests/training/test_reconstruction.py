"""Measuring reconstructions of whole videos: which frames, which columns, which files; killed, shared, repeated."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autogaze_mllm import InputError, PatchGrid
from autogaze_mllm.common.storage.hashing import fingerprint
from autogaze_mllm.training.reconstruction.clips import ClipPlan, plan_clips
from autogaze_mllm.training.reconstruction.models import load_models

from ..helpers.files.hub_cache import COMMITS, cached_model, use_cache
from ..helpers.paths import ROOT
from ..helpers.programs import run_script
from ..helpers.training_models import busy_clip, small_gaze, write_clips

GRID, CPU = PatchGrid.of("32+64", 16), torch.device("cpu")
SECONDS = ("gaze_seconds", "reconstruction_seconds")
TABLES = ("metrics_by_frame", "metrics_by_clip_setting", "summary_by_setting")
PUBLIC = {  # the columns of the public evaluation of the published weights
    "metrics_by_frame": "clip_name,clip_start,setting,frame_idx,reconstruction_loss,non_padded_gazes,pixel_mae,"
    "pixel_mse,psnr,ssim",
    "metrics_by_clip_setting": "clip_name,clip_start,setting,gazing_ratio_arg,task_loss_requirement_arg,"
    "non_padded_gazes,actual_gaze_ratio,reconstruction_loss,pixel_mae,pixel_mse,psnr,ssim,gaze_seconds,"
    "reconstruction_seconds,non_padded_gazes_by_frame,num_gazing_each_frame",
    "summary_by_setting": "setting,actual_gaze_ratio,non_padded_gazes,reconstruction_loss,pixel_mae,pixel_mse,psnr,"
    "ssim,gaze_seconds,reconstruction_seconds",
}


def evaluate(videos: Path, out: Path, *options: object) -> int:
    """Clips of 4 consecutive frames, unless the options say otherwise."""
    return run_script("evaluate_reconstruction", videos, "--device", "cpu", "--out", out, *map(str, options))


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(out: Path) -> dict[str, list[dict[str, str]]]:
    return {name: [{k: v for k, v in row.items() if k not in SECONDS} for row in table(out, name)] for name in TABLES}


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "videos"
    write_clips(folder, 2, frames=7)
    return folder


MEASURED = ("--clip-len", 3, "--max-clips", 2, "--settings", "ratio_0.10,ratio_1.00,task_0.03", "--viz-clips", 1)


@pytest.fixture(scope="module")
def measured(videos: Path) -> Path:
    """With a gaze model of a grid of its own, beside selectors without weights."""
    small_gaze().save_pretrained(videos.parent / "small")
    out = videos.parent / "out"
    assert evaluate(videos, out, "--gaze", f"{videos.parent / 'small'},greedy", *MEASURED) == 0
    return out


def test_clips_of_consecutive_frames(videos: Path) -> None:
    path = videos / "000.mp4"

    def frames(**plan: Any) -> list[list[int]]:
        return [list(clip.frames) for clip in plan_clips([path], ClipPlan(**plan))]

    assert frames(length=3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert frames(length=3, most=2) == [[0, 1, 2], [3, 4, 5]]
    assert frames(length=3, stride=2, most=2) == [[0, 1, 2], [2, 3, 4]]
    assert frames(length=4, starts=(5, 0)) == [[5, 6], [0, 1, 2, 3]]
    assert frames(spread=3, length=2) == [[0, 3], [6]]
    with pytest.raises(InputError, match="no clip can start at frame 7: the video has 7 frames"):
        frames(starts=(0, 7))


def test_bad_clips_are_one_line(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (("--frames", 4, "--stride", 2), "--frames spreads frames over a video, --stride takes consecutive ones"),
        (("--clip-starts", "0,x"), "expected numbers of frames"),
        (("--clip-starts", "0", "--stride", 2), "give one of them"),
        (("--clip-len", 0), "--clip-len must be at least 1"),
        (("--settings", "share_3"), "setting 'share_3'"),
        (("--revision", "0123"), "expected MODEL=REVISION"),
        (("--revision", "nobody/model=0123"), "'nobody/model' is none of the models"),
        (("--revision", "greedy=0123"), "greedy is no model of the hub"),
    ):
        assert evaluate(videos, tmp_path / "out", "--gaze", "greedy", *options) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("evaluate_reconstruction: error: ") and said in line


def test_tables_have_the_public_columns(measured: Path) -> None:
    for name, columns in PUBLIC.items():
        own = [column for column in table(measured, name)[0] if column in columns.split(",")]
        assert own == columns.split(",") or sorted(own) == sorted(columns.split(","))
    clips, frames = table(measured, "metrics_by_clip_setting"), table(measured, "metrics_by_frame")
    assert len(clips) == 2 * 2 * 2 * 3 and len(frames) == 3 * len(clips)
    assert [row["clip_name"] for row in clips[:4]] == ["clip_00_start_0000"] * 3 + ["clip_01_start_0003"]
    for row in clips:
        own = [f for f in frames if all(f[k] == row[k] for k in ("video", "clip_name", "selector", "setting"))]
        assert json.loads(row["non_padded_gazes_by_frame"]) == [int(f["non_padded_gazes"]) for f in own]
        assert sum(int(f["non_padded_gazes"]) for f in own) == int(row["non_padded_gazes"])
        assert [int(f["video_frame"]) - int(f["frame_idx"]) for f in own] == [int(row["clip_start"])] * 3
        if row["setting"] == "task_0.03":
            assert row["gazing_ratio_arg"] == "" and row["task_loss_requirement_arg"] == "0.03"


def test_exact_frames_are_counted_and_spoil_no_mean(measured: Path) -> None:
    """A mean over decibels, with 150 for a frame without an error, says nothing."""
    for row in table(measured, "metrics_by_clip_setting"):
        own = [f for f in table(measured, "metrics_by_frame") if f["clip_name"] == row["clip_name"]]
        own = [f for f in own if all(f[key] == row[key] for key in ("video", "selector", "setting"))]
        assert int(row["exact_frames"]) == sum(f["exact"] == "1" for f in own)
        if row["exact_frames"] == row["frames"]:
            assert row["psnr"] == ""
        else:
            mean = np.mean([float(f["pixel_mse"]) for f in own])
            assert float(row["psnr"]) == pytest.approx(-10 * np.log10(mean))
    summary = {(r["selector"], r["setting"]): r for r in strict_json(measured / "summary.json")["summary"]}
    everything, little = summary["small", "ratio_1.00"], summary["greedy", "ratio_0.10"]
    assert (everything["psnr"], everything["exact_frames"], everything["frames"]) == (None, 12, 12)
    assert little["exact_frames"] == 0 and 10 < little["psnr"] < 70
    assert "exact" in (measured / "summary.txt").read_text()
    assert summary["greedy", "task_0.03"]["measured_over_asked"] <= 1.0


def test_others_are_counted_where_that_is_asked_for(videos: Path, tmp_path: Path) -> None:
    options = ("--gaze", "greedy", "--settings", "ratio_0.10", "--clip-len", 1, "--max-clips", 1, "--viz-clips", 0)
    assert evaluate(videos / "000.mp4", tmp_path, *options, "--match") == 0
    (row,) = table(tmp_path, "summary_by_setting")
    assert float(row["patches_over_greedy"]) == pytest.approx(1.0, abs=0.1) and float(row["patches_over_random"]) < 1
    (matched,) = table(tmp_path, "matched")
    assert int(matched["patches"]) == 26


def test_metadata_say_how_to_repeat_it(measured: Path) -> None:
    told = strict_json(measured / "metadata.json")
    assert told["command"].startswith("python ") and "--viz-clips" in told["command"]
    model = told["models"]["gaze"]["small"]
    weights = Path(model["source"]) / "model.safetensors"
    assert model["sha256"]["model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert told["models"]["task"]["name"] == "mosaic" and told["seed"] == 0
    assert told["settings"][2] == {"name": "task_0.03", "gazing_ratio": None, "task_loss_requirement": 0.03}
    assert told["versions"]["packages"]["torch"] and told["machine"]
    assert told["clips"]["frames"]["001.mp4/clip_01_start_0003"] == [3, 4, 5]
    assert set(told["videos"]) == {"000.mp4", "001.mp4"}


def test_there_is_a_sheet_for_each_setting_and_a_plot_for_each_selector(measured: Path) -> None:
    pictures = {path.relative_to(measured).as_posix() for path in measured.rglob("*.png")}
    expected = {"plots/tradeoff_curves.png"}
    for name in ("small", "greedy"):
        plots = ("per_frame_curves", "gaze_heatmap", "where_gaze_looks_000.mp4_clip_00_start_0000")
        expected |= {f"plots/{name}/{plot}.png" for plot in plots}
        settings = ("ratio_0.10", "ratio_1.00", "task_0.03")
        expected |= {f"visualizations/{name}/000.mp4_clip_00_start_0000_{setting}.png" for setting in settings}
    assert pictures == expected
    for picture in pictures:
        pixels = np.asarray(Image.open(measured / picture).convert("RGB"))
        assert pixels.shape[1] >= 900 and pixels.std() > 5


def test_a_killed_run_goes_on(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured stays, what a kill tore off is measured again; other settings or weights are refused, also
    where the model's folder is the same."""
    options = ("--gaze", tmp_path / "gaze", "--settings", "ratio_0.10,task_0.03", "--viz-clips", 0)
    small_gaze(0).save_pretrained(tmp_path / "gaze")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert evaluate(videos, whole, *options, "--frames", 2) == 0
    lines = (whole / "measured-00000.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    out.mkdir()
    (out / "run.json").write_bytes((whole / "run.json").read_bytes())
    (out / "measured-00000.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:30])
    assert evaluate(videos, out, *options, "--frames", 2) == 0
    kept = (out / "measured-00000.jsonl").read_bytes().splitlines(keepends=True)
    assert kept[:2] == lines[:2] and len(kept) == len(lines)
    assert without_seconds(out) == without_seconds(whole)
    capsys.readouterr()
    assert evaluate(videos, out, *options, "--frames", 3) == 2
    assert "was begun with other settings" in capsys.readouterr().err
    small_gaze(1).save_pretrained(tmp_path / "gaze")
    assert evaluate(videos, out, *options, "--frames", 2) == 2
    assert "models.gaze.selector.weights" in capsys.readouterr().err


def test_the_model_of_a_run_is_called_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_gaze().save_pretrained(tmp_path / "ntp" / "gaze")
    assert [one.label for one in load_models([str(tmp_path / "ntp/gaze")], "mosaic", CPU).contenders] == ["gaze"]
    (tmp_path / "ntp" / "settings.json").write_text("{}")  # what train-gaze leaves beside it
    monkeypatch.chdir(tmp_path / "ntp")
    for name in (str(tmp_path / "ntp/gaze"), "gaze", "../ntp/gaze"):
        (one, _) = load_models([name, "all"], "mosaic", CPU).contenders
        assert (one.label, one.file) == ("ntp/gaze", "ntp-gaze")


def test_the_attention_of_the_fork_s_command(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--gaze", "pixel-diff", "--settings", "ratio_0.10", "--viz-clips", 0, "--frames", 1, "--attn-mode")
    assert evaluate(videos, tmp_path / "out", *options, "sdpa") == 0
    assert evaluate(videos, tmp_path / "other", *options, "eager") == 2
    assert "invalid choice: 'eager' (choose from 'sdpa')" in capsys.readouterr().err.splitlines()[-1]


def test_the_seed_decides_random_choice(videos: Path) -> None:
    pixels = torch.from_numpy(busy_clip(0, 2)).permute(0, 3, 1, 2)[None] / 255
    kept = []
    for seed in (0, 0, 1):
        (one,) = load_models(["random"], "mosaic", CPU, seed=seed).contenders
        assert one.metadata["seed"] == seed
        kept.append(one.selector.select(pixels, GRID, 0.3, None).gazing_pos.tolist())
    assert kept[0] == kept[1] != kept[2]


def test_a_revision_is_the_one_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commits of a model in the hub's cache; `main` is the second one."""
    commits, models = COMMITS, [small_gaze(seed) for seed in (0, 1)]
    writers = {commit: model.save_pretrained for model, commit in zip(models, commits, strict=True)}
    cached_model(tmp_path, "someone/gaze", writers)
    use_cache(monkeypatch, tmp_path)
    for model, commit in zip(models, commits, strict=True):
        (one,) = load_models(["someone/gaze"], "mosaic", CPU, revisions={"someone/gaze": commit}).contenders
        assert (one.label, one.metadata["revision"], one.metadata["commit"]) == ("gaze", commit, commit)
        assert one.selector.identity()["weights"] == fingerprint(model.state_dict()) == one.metadata["weights"]
    with pytest.raises(InputError, match=r"someone/gaze at revision 'cccc'"):
        load_models(["someone/gaze"], "mosaic", CPU, revisions={"someone/gaze": "cccc"})


@pytest.mark.slow
def test_two_processes_share_the_clips_and_leave_the_same_files(videos: Path, measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    program = [ROOT / "scripts" / "evaluate_reconstruction.py", videos, "--device", "cpu", "--out", out]
    program += ["--gaze", f"{videos.parent / 'small'},greedy", *MEASURED]
    done = subprocess.run(
        [*launch, *map(str, program)], capture_output=True, text=True, timeout=900, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    parts = [len((out / f"measured-0000{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert parts == [12, 12]
    assert without_seconds(out) == without_seconds(measured)
    named = [{path.relative_to(folder) for path in folder.rglob("*.png")} for folder in (out, measured)]
    assert named[0] == named[1]
