"""The two stages of the published training in small, by their scripts: what they train with, killed and gone on with,
in two processes; what they fetch; and what they ask for."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from autogaze_mllm import AutoGaze

from ..helpers.files.data_hub import DataHub, serving
from ..helpers.files.published_folders import small_gaze
from ..helpers.paths import GOLDEN, ROOT
from ..helpers.training_models import write_clips

NTP, GRPO = "train_gaze_ntp.sh", "train_gaze_grpo.sh"


def run(script: str, *more: str | Path, check: bool = True, **variables: object) -> subprocess.CompletedProcess[str]:
    """In a folder of the machine that has no GPU."""
    given = {name: str(value) for name, value in variables.items()}
    environment = {name: value for name, value in os.environ.items() if name not in ("DATA", "TASK", "OUTPUT", "INIT")}
    environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **given}
    command = ["bash", str(ROOT / "scripts" / script), *map(str, more)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def settings(folder: Path) -> dict:
    return json.loads((folder / "settings.json").read_text())


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the published training data lie: roots with train/ and val/, each with its labels."""
    folder = tmp_path_factory.mktemp("data")
    for root in ("one", "two"):
        write_clips(folder / root / "train", 2, frames=4)
        write_clips(folder / root / "val", 1, frames=4)
        labels = {
            f"/published/{root}/train/{number:03}.mp4": {
                "gazing_pos": [[0, 1, 2, 3, 20 + number], [265, 270 + number]],
                "task_losses": [[0.9, 0.8, 0.7, 0.6, 0.5], [0.6, 0.5]],
            }
            for number in range(2)
        }
        (folder / root / "gazing_labels.json").write_text(json.dumps(labels))
    return folder


@pytest.fixture(scope="module")
def gaze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gaze")
    small_gaze().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_both_stages_run_in_small_and_a_kill_changes_nothing(data: Path, gaze: Path, tmp_path: Path) -> None:
    """Stage 1 by two processes of torchrun, and by one that is killed: the same losses; stage 2 goes on from there."""
    small = {"SMALL": 1, "DATA": data, "EPOCHS": 3, "PER_GPU": 2}
    more = ["--init", gaze, "--val-clips", "-1", "--save-every", "1", "--json"]
    two = run(NTP, *more, **small, PROCESSES=2, OUTPUT=tmp_path / "ntp")
    result = json.loads(two.stdout.strip().splitlines()[-1])
    assert (result["videos"], result["val_clips"], result["steps"]) == (4, 2, 3)
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {name: str(value) for name, value in small.items()} | {"OUTPUT": str(tmp_path / "killed")}
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / NTP), *map(str, more)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (tmp_path / "killed/checkpoints/step-00000001").exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(NTP, *more, **small, OUTPUT=tmp_path / "killed")
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "ntp"), rel=1e-4)
    rows = [(tmp_path / name / "validation.json").read_text() for name in ("ntp", "killed")]
    one, other = map(json.loads, rows)  # whichever process looked at a clip
    assert one == pytest.approx(other, rel=1e-3)
    kept = settings(tmp_path / "ntp")
    assert (kept["optimizer"], kept["lr"], kept["schedule"], kept["min_lr"]) == ("adam", 5e-4, "linear", 0)
    assert (kept["ratio"], kept["frame_ratio"], kept["log_probabilities"]) == (
        "fixed:0.1",
        "dirichlet:10,3",
        "published",
    )
    budget = AutoGaze.from_pretrained(tmp_path / "ntp/gaze").config.budget
    assert (budget.ratio, budget.frame_inference, budget.dirichlet_alpha) == (0.1, "dirichlet", "10,3")

    second = {"SMALL": 1, "DATA": data, "OUTPUT": tmp_path / "grpo"}
    run(GRPO, "--json", **second, INIT=tmp_path / "ntp/gaze")
    kept = settings(tmp_path / "grpo")
    assert (kept["algorithm"], kept["temperature"], kept["discount"], kept["top_k"]) == ("grpo", [3, 0.3], 0.995, 50)
    budget = AutoGaze.from_pretrained(tmp_path / "grpo/gaze").config.budget
    assert (budget.ratio, budget.frame_training, budget.requirement_training) == (0.75, "self", "uniform")
    assert budget.frame_inference == "uniform"  # and no longer that of stage 1
    assert (budget.use_requirement_inference, budget.requirement_inference) == (True, "fixed")
    before, after = (load_file(tmp_path / name / "gaze/model.safetensors") for name in ("ntp", "grpo"))
    assert any(not before[name].equal(after[name]) for name in before)
    refused = run(GRPO, "--json", **second, INIT=gaze, check=False)
    assert refused.returncode != 0 and "this run was begun with other settings" in refused.stderr


@pytest.mark.slow
def test_a_published_videomae_goes_through_both_stages(data: Path, tmp_path: Path) -> None:
    """That of the golden data, whose grid a new gaze model takes."""
    if not (GOLDEN / "videomae_published").is_dir():
        pytest.skip("AUTOGAZE_TEST_DATA does not name the golden data of a published VideoMAE")
    task = tmp_path / "task"
    shutil.copytree(GOLDEN / "videomae_published", task)
    labels = {
        f"{root}/train/{number:03}.mp4": {"gazing_pos": [[0, 1, 60], [245, 250]], "task_losses": [[3, 2, 1], [2, 1]]}
        for root in ("one", "two")
        for number in range(2)
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    given = {"SMALL": 1, "DATA": data, "TASK": task / "VideoMAE_AutoGaze", "LABELS": tmp_path / "labels.json"}
    run(NTP, "--val-clips", "1", **given, EPOCHS=1, OUTPUT=tmp_path / "ntp")
    run(GRPO, "--val-clips", "1", **given, INIT=tmp_path / "ntp/gaze", OUTPUT=tmp_path / "grpo")
    kept = settings(tmp_path / "grpo")
    assert kept["task"]["sample_rate"] == 0.125
    assert kept["task"]["config"]["loss_type"] == "l1+dinov2_reg+siglip2"
    assert kept["task"]["config"]["loss_weights"] == "1+0.3+0.3"
    budget = AutoGaze.from_pretrained(tmp_path / "grpo/gaze").config.budget
    assert (budget.requirement_range, budget.requirement) == ((0.5, 1.0), 0.7)


@pytest.mark.slow
def test_the_manual_s_way_for_newcomers(tmp_path: Path) -> None:
    """From made videos to a model, as the page has it."""
    page = (ROOT / "docs/gaze-training.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL) if "SMALL=1" in b)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("python", ""), ("autogaze-mllm", "-m autogaze_mllm.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "patches kept" in done.stdout
    plots = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("evaluation/plots/*/per_frame_curves.png")}
    assert plots == {f"evaluation/plots/{name}/per_frame_curves.png" for name in ("bundled", "grpo-gaze")}
    assert all((tmp_path / run / "curves.png").is_file() for run in ("ntp", "grpo"))
    assert settings(tmp_path / "ntp")["labels"] != [] and "Traceback" not in done.stderr


def published_command(script: str, tmp_path: Path, **variables: object) -> list[str]:
    """What is started on eight GPUs, by a python that writes down what it is to launch."""
    listing = tmp_path / "python"
    listing.write_text(
        f'#!/bin/sh\ncase "$1" in -m | */launch.py) ;; *) exec "{sys.executable}" "$@" ;; esac\nprintf "%s\\n" "$@"\n'
    )
    listing.chmod(0o755)
    return run(script, **{**variables, "PYTHON": listing}).stdout.splitlines()


def option(words: list[str], name: str) -> str:
    return words[len(words) - words[::-1].index(name)]


def test_what_is_published_is_what_is_started(data: Path, tmp_path: Path) -> None:
    given = {"DATA": data, "TASK": "VideoMAE_AutoGaze", "OUTPUT": "out", "PROCESSES": 8}
    words = published_command(NTP, tmp_path, **given)
    expected = {
        "--nproc-per-node": "8",
        "train-gaze": f"{data}/one,{data}/two",
        "--labels": f"{data}/one/gazing_labels.json,{data}/two/gazing_labels.json",
        "--algorithm": "ntp",
        "--epochs": "150",
        "--batch-size": "1024",
        "--frames": "16",
        "--optimizer": "adam",
        "--lr": "5e-4",
        "--schedule": "linear",
        "--ratio": "fixed:0.1",
        "--frame-ratio": "dirichlet:10" + ",3" * 15,
        "--task-losses": "l1+dinov2_reg+siglip2",
        "--task-weights": "1+0.3+0.3",
        "--rebuild": "0.125",
        "--val-every": "3000",
        "--save-every": "500",
        "--val-clips": "-1",
    }
    assert {name: option(words, name) for name in expected} == expected
    words = published_command(GRPO, tmp_path, **given, INIT="ntp/gaze", NODES=4, NODE=3, MASTER="first", PORT=1234)
    expected = {
        "--nnodes": "4",
        "--node-rank": "3",
        "--master-addr": "first",
        "--master-port": "1234",
        "--algorithm": "grpo",
        "--init": "ntp/gaze",
        "--batch-size": "64",
        "--micro-batch": "2",
        "--group-size": "12",
        "--discount": "0.995",
        "--temperature": "3:0.3",
        "--ratio": "fixed:0.75",
        "--frame-ratio": "self",
        "--requirement": "uniform:0.5:1.0",
        "--val-requirement": "fixed:0.7",
    }
    assert {name: option(words, name) for name in expected} == expected


@pytest.mark.slow
def test_two_processes_say_once_what_is_wrong(data: Path, tmp_path: Path) -> None:
    """In one line and with the exit code of one process, whatever torchrun would say; a fault is told in full."""
    done = run(NTP, "--val-clips", "-5", check=False, SMALL=1, DATA=data, OUTPUT=tmp_path / "run", PROCESSES=2)
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0, done.stderr
    assert "val_clips must be at least -1" in done.stderr
    (tmp_path / "fault.py").write_text("raise RuntimeError('a fault')")
    command = [
        sys.executable,
        ROOT / "scripts/launch.py",
        "--standalone",
        "--nproc-per-node",
        "2",
        tmp_path / "fault.py",
    ]
    fault = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert fault.returncode == 1 and "RuntimeError: a fault" in fault.stderr and "ChildFailedError" in fault.stderr


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (NTP, {}, "name DATA (folders with train/ and val/), TASK (a VideoMAE, or mosaic) and OUTPUT"),
        (NTP, {"DATA": "d", "TASK": "t"}, "or fetch the first two with DOWNLOAD=1"),
        (NTP, {"DATA": "d", "TASK": "t", "OUTPUT": "o"}, "d: no such folder, video or list of videos"),
        (
            NTP,
            {"DATA": ROOT, "TASK": "t", "OUTPUT": "o"},
            "; name some by LABELS, or make them with",
        ),
        (GRPO, {"DATA": ROOT, "TASK": "t", "OUTPUT": "o"}, "name the model of stage 1 by INIT"),
        (NTP, {"SMALL": "1", "DATA": "d", "OUTPUT": "o", "NODES": "2"}, "with NODES=2 name MASTER"),
        (NTP, {"SMALL": "1", "DATA": "d", "OUTPUT": "o", "PROCESSES": "two"}, "PROCESSES must be a whole number"),
        (NTP, {"SMALL": "1", "DATA": "d", "OUTPUT": "o", "NODES": "0"}, "must be at least 1"),
    ],
)
def test_what_is_missing_is_asked_for_in_one_line(script: str, variables: dict[str, object], message: str) -> None:
    done = run(script, check=False, **variables)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{script}: error: ")


@pytest.mark.slow
def test_the_training_data_are_fetched_and_unpacked(data: Path, tmp_path: Path) -> None:
    class Hub(DataHub):
        repository = "bfshi/AutoGaze-Training-Data"

    whole, part, zipped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for split in ("train", "val"):
            tar.add(data / "one" / split, f"one/{split}")
    with tarfile.open(fileobj=part, mode="w:gz") as tar:
        tar.add(data / "two/train", "train")
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in (data / "two/val").iterdir():
            archive.write(path, f"val/{path.name}")
    Hub.files = {
        "one.tar": whole.getvalue(),
        "one/gazing_labels.json": (data / "one/gazing_labels.json").read_bytes(),
        "two/train.tar.gz": part.getvalue(),  # archives in a folder hold what belongs into it
        "two/val.zip": zipped.getvalue(),
        "two/gazing_labels.json": (data / "two/gazing_labels.json").read_bytes(),
    }
    place = tmp_path / "fetched"
    with serving(Hub) as address:
        hub = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": 0, "HF_HOME": tmp_path / "home"}
        words = published_command(NTP, tmp_path, DOWNLOAD=1, OUTPUT="out", DATA=place, **hub)
    assert option(words, "train-gaze") == f"{place}/one,{place}/two"
    assert option(words, "--labels") == f"{place}/one/gazing_labels.json,{place}/two/gazing_labels.json"
    assert option(words, "--task") == "bfshi/VideoMAE_AutoGaze"
    for root, split in itertools.product(("one", "two"), ("train", "val")):
        for path in (data / root / split).iterdir():
            assert (place / root / split / path.name).read_bytes() == path.read_bytes()
    offline = {"DOWNLOAD": 1, "OUTPUT": "out", "HF_HUB_OFFLINE": 1, "HF_HOME": tmp_path / "home"}
    assert published_command(NTP, tmp_path, **offline, DATA=place) == words  # it is there, so no hub is asked
    failed = run(NTP, check=False, **offline, DATA=tmp_path / "other")
    assert failed.returncode == 2
    assert "bfshi/AutoGaze-Training-Data could not be fetched from the hub" in failed.stderr.splitlines()[-1]
