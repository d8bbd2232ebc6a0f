"""benchmarks/gpu.py and scripts/gpu_check.sh: every step in small on the CPU, failing and endless ones included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import gpu

from ..helpers.programs import run_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_all_steps_in_small(tmp_path: Path) -> None:
    command = ["bash", "scripts/gpu_check.sh", str(tmp_path), "--small"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: step["state"] for name, step in report["steps"].items()} == dict.fromkeys(
        ["videos", "machine", "tests", "gaze_speed", "profile", "latency", "question"], "ok"
    )
    assert report["steps"]["machine"]["machine"]["matmul_tflops"]["fp32"] > 0
    assert report["steps"]["latency"]["latency"]["rows"][1]["fps"] == 3
    assert report["steps"]["question"]["question"]["rows"][0]["visual_tokens"] > 0
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    with tarfile.open(tmp_path / "logs.tar.gz") as logs:
        assert {"tests.log", "question.log"} <= set(logs.getnames())
    table = (tmp_path / "table.txt").read_text()
    assert "copy" in table and "3 x 224" in table and "pixel-diff: 24 frames" in table


def step(name: str, code: str, seconds: float = 30, **more: object) -> gpu.Step:
    return gpu.Step(name, [sys.executable, "-c", code], seconds, **more)  # type: ignore[arg-type]


def test_a_step_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    written = "import json, pathlib; pathlib.Path('{work}/found.json').write_text(json.dumps({'rows': [1]}))"
    steps = [
        step("behind", "import time; time.sleep(0.5)", background=True),
        step("broken", "raise SystemExit('no such kernel')"),
        step("endless", written + "; import time; time.sleep(60)", 1.5, results=("found.json",), keep=("found.json",)),
        step("last", "print('fine')", after="behind"),
    ]
    failed = gpu.Runner(tmp_path, 1).run(steps)
    report = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert failed == 1
    assert (report["broken"]["state"], report["broken"]["why"]) == ("failed", "no such kernel")
    assert report["endless"]["state"] == "cut off" and report["endless"]["found"] == {"rows": [1]}
    assert (tmp_path / "found.json").exists(), "what it had written is brought back"
    assert report["behind"]["state"] == report["last"]["state"] == "ok"
    assert 0.4 < report["behind"]["seconds"] < 10


def test_no_step_begins_when_the_time_is_over(tmp_path: Path) -> None:
    steps = [step("first", "import time; time.sleep(60)"), step("second", "print(1)")]
    start = time.monotonic()
    assert gpu.Runner(tmp_path, (gpu.SPARE + 3) / 60).run(steps) == 0
    assert time.monotonic() - start < 20
    report = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert report["first"]["state"] == "cut off" and report["second"]["state"] == "left out"


def test_an_interrupt_ends_the_step_and_keeps_what_is_there(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", str(tmp_path), "--small", "--only", "machine,latency"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("machine: ok")
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    report = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert report["machine"]["state"] == "ok" and report["latency"]["state"] == "cut off"


def test_an_unknown_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("gpu", tmp_path, "--small", "--only", "machine,nothing", room="benchmarks") == 2
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert "unknown step 'nothing'; known: videos, machine, tests" in refusal and "torchcodec" not in refusal
    options = ("--small", "--torchcodec", "--only", "nothing")
    assert run_script("gpu", tmp_path, *options, room="benchmarks") == 2
    assert capsys.readouterr().err.rstrip().endswith("question, torchcodec")
