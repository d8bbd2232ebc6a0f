"""scripts/check_published.py on weights and expectations that the test writes: it says equal where they are."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

import autogaze_mllm as am
from autogaze_mllm.common.pixels import resize_bicubic
from autogaze_mllm.published import AutoGazeImageProcessor, read_video_pyav
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask

from ..helpers.files.published_folders import write_siglip
from ..helpers.paths import GOLDEN, ROOT
from ..helpers.training_models import CONFIG, small_gaze

Run = Callable[..., tuple[int, str, str]]
STARTS, LENGTH = [0, 3], 4
SETTINGS = {"ratio_0.25": (0.25, None), "ratio_0.50_task_0.70": (0.5, 0.7), "ratio_1.00": (1.0, None)}
COLUMNS = ("non_padded_gazes", "reconstruction_loss", "pixel_mae", "psnr", "ssim")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("check")
    small_gaze().save_pretrained(folder / "gaze")
    VideoMAETask(VideoMAEConfig.from_dict(CONFIG)).save_pretrained(folder / "task")
    write_siglip(folder / "siglip", 64, 16)
    (folder / "clip.mp4").symlink_to(clip)
    return folder


@pytest.fixture
def check(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """Exit code, and what was printed to both streams, of the script on these models."""

    def run(*words: object) -> tuple[int, str, str]:
        models = ["--gaze", place / "gaze", "--task", place / "task", "--siglip", place / "siglip"]
        given = [str(word) for word in (*models, *words, "--device", "cpu")]
        monkeypatch.setattr(sys, "argv", ["check_published.py", *given])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "scripts" / "check_published.py"), run_name="__main__")
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def expectations(**example: Any) -> dict[str, Any]:
    settings = {
        name: {"gazing_ratio": ratio, "task_loss_requirement": loss, **dict.fromkeys(COLUMNS, 0.5)}
        for name, (ratio, loss) in SETTINGS.items()
    }
    table = {"clip_starts": STARTS, "clip_len": LENGTH, "settings": settings, "allowed": dict.fromkeys(COLUMNS, 0.001)}
    call = {"frames": LENGTH, "gazing_ratio": 0.5, "task_loss_requirement": -9.0, "tower_channels": 32}
    return {"example": {**call, "entries": 1, "kept": 1, "entries_of_frames": [1], **example}, "table": table}


def test_equal_or_not_line_by_line(place: Path, check: Run, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    with_numbers = (place / "clip.mp4", "--parts", "example,table", "--expected", numbers)
    numbers.write_text(json.dumps(expectations()))
    code, out, _ = check(*with_numbers, "--json")
    found = {line["what"]: line["found"] for line in json.loads(out)["lines"]}
    assert code == 1 and len(found) == 4 + len(SETTINGS) * len(COLUMNS)
    assert found["entries"] == found["kept patches"] == LENGTH * 10 and found["entries of each frame"] == [10] * LENGTH
    assert found["features of the tower"] == [1, LENGTH * 10, 32]
    assert found["ratio_0.25 non_padded_gazes"] == LENGTH * 5 and found["ratio_1.00 non_padded_gazes"] == LENGTH * 20

    # What it found is expected now: equal, with every line said to be so.
    right = expectations(entries=40, kept=40, entries_of_frames=[10] * LENGTH)
    for name in SETTINGS:
        right["table"]["settings"][name] |= {column: found[f"{name} {column}"] for column in COLUMNS}
    numbers.write_text(json.dumps(right))
    code, out, _ = check(*with_numbers)
    assert code == 0 and "NOT EQUAL" not in out and f"{len(found)} of {len(found)} equal" in out

    right["table"]["settings"]["ratio_1.00"]["psnr"] += 0.5
    right["example"]["kept"] = 39
    numbers.write_text(json.dumps(right))
    code, out, _ = check(*with_numbers)
    wrong = [line for line in out.splitlines() if line.startswith("NOT EQUAL")]
    assert code == 1 and len(wrong) == 2
    assert "example: kept patches: 39, found 40" in wrong[0] and "table: ratio_1.00 psnr: " in wrong[1]


def test_the_table_measures_what_the_fork_does(place: Path, check: Run, tmp_path: Path, clip: Path) -> None:
    """The mean error of a pixel, and the loss, by the package's own parts."""
    import av
    import torch

    numbers = tmp_path / "numbers.json"
    numbers.write_text(json.dumps(expectations()))
    _, out, _ = check(place / "clip.mp4", "--parts", "table", "--expected", numbers, "--json")
    found = {line["what"]: line["found"] for line in json.loads(out)["lines"]}
    gaze, task = am.AutoGaze.from_pretrained(place / "gaze"), VideoMAETask.from_pretrained(place / "task")
    errors, losses = [], []
    for start in STARTS:
        with av.open(str(clip)) as container:
            frames = list(read_video_pyav(container, range(start, start + LENGTH)))
        info = gaze.generate(AutoGazeImageProcessor.from_pretrained(place / "gaze")(frames, "pt").pixel_values, 0.25)
        with torch.no_grad():
            target = resize_bicubic(task.processor(frames)[None], 64, 64)
            result = task(target, info)
        errors.append(float((task.denormalize(result.reconstruction) - task.denormalize(target)).abs().mean()))
        losses.append(float(result.loss))
    assert found["ratio_0.25 pixel_mae"] == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert found["ratio_0.25 reconstruction_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_golden_data(check: Run, tmp_path: Path) -> None:
    names = ["gaze_00_basic", "gaze_08_labels", "siglip_00", "independent_rows"]
    for name in names:
        for ending in (".json", ".safetensors"):
            (tmp_path / f"{name}{ending}").write_bytes((GOLDEN / f"{name}{ending}").read_bytes())
    code, out, _ = check("--parts", "golden", "--golden", tmp_path)
    assert code == 0 and "gaze_00_basic both, what differs" in out and "siglip_00 block_causal features" in out

    path = tmp_path / "gaze_00_basic.safetensors"
    tensors = load_file(path)
    tensors["ratio/gazing_pos"][0, 0] += 1
    tensors["ratio/log_action_probs"] += 0.01
    save_file(tensors, path)
    code, out, _ = check("--parts", "golden", "--golden", tmp_path)
    wrong = [line for line in out.splitlines() if line.startswith("NOT EQUAL")]
    assert code == 1 and len(wrong) == 2 and "['gazing_pos']" in wrong[0] and "log_action_probs" in wrong[1]


def test_bad_input_is_one_line(place: Path, check: Run, tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    for words, said in (
        ((), "need the video"),
        ((tmp_path / "nowhere.mp4",), "there is no such video"),
        ((tmp_path / "no.mp4",), "cannot be read as a video"),
        (("--parts", "examples"), "'examples' is not one of example, table, golden"),
        (("--parts", "golden", "--golden", tmp_path), "there is no golden data"),
        ((place / "clip.mp4", "--gaze", place / "task"), "not 'autogaze'"),
        ((place / "clip.mp4", "--expected", tmp_path / "no.json"), "no.json: cannot be read"),
    ):
        code, out, err = check(*words)
        assert code == 2 and not out and said in err and err.count("\n") == 1, err


def test_revisions_are_those_of_the_numbers_or_those_that_are_given(
    place: Path, check: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of the hub in which a repository has two revisions: the model, and one that is no model."""
    good, bad = "1" * 40, "2" * 40
    home = tmp_path / "models--someone--gaze"
    shutil.copytree(place / "gaze", home / "snapshots" / good)
    shutil.copytree(place / "siglip", home / "snapshots" / bad)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    numbers = tmp_path / "numbers.json"
    words = (place / "clip.mp4", "--parts", "example", "--gaze", "someone/gaze", "--expected", numbers)
    numbers.write_text(json.dumps({"revisions": {"someone/gaze": good}, **expectations()}))
    assert check(*words)[0] == 1
    code, _, err = check(*words, "--revision", f"someone/gaze={bad}")
    assert code == 2 and "model_type is 'siglip'" in err
    code, _, err = check(*words, "--revision", f"nobody/gaze={bad}")
    assert code == 2 and "'nobody/gaze' is none of the models: someone/gaze" in err


def test_the_published_numbers_are_those_of_the_grid() -> None:
    """Where no loss decides, patches are a share of 265 in each of 16 frames."""
    numbers = json.loads((ROOT / "scripts" / "published_numbers.json").read_text(encoding="utf-8"))
    example, settings = numbers["example"], numbers["table"]["settings"]
    assert sum(example["entries_of_frames"]) == example["entries"] == 348 and example["entries_of_frames"][0] == int(
        0.75 * 265
    )
    for name, row in settings.items():
        if "task" not in name:
            assert row["non_padded_gazes"] == int(float(name.removeprefix("ratio_")) * 265) * 16
