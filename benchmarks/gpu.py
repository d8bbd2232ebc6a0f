"""What a GPU does with all of this, in one command that yields the most in the minutes it is given.

Steps run one after the other in the order of their worth, each in a process of its own with a limit of its own. What a
step has measured lies in OUT as soon as it ends, killed ones included: gpu.json (all results), plots, logs.tar.gz. A
step that fails is reported and the others go on; the exit code is the number of steps that failed. docs/gpu.md says
what each step answers. `--small` runs every step on the CPU at a size that proves the script and measures nothing.

    python benchmarks/gpu.py OUT --minutes 9
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SPARE = 5.0  # seconds kept for writing results and the table
LARGEST = 15 << 20  # bytes of a file that is brought back


@dataclass(frozen=True)
class Step:
    """command: with {work} for the folder that it writes to and {minutes} for the time left. seconds: its limit.
    results: json files that become part of gpu.json; keep: files that are brought back. background: runs beside the
    others; after: the background step that must have ended."""

    name: str
    command: list[str]
    seconds: float
    results: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    background: bool = False
    after: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, os.path.normpath(f"{HERE.name}/{script}"), *arguments]


def marked() -> list[str]:
    """The files that hold tests for CUDA: collecting all the others takes long and needs what they import."""
    root = HERE.parent
    files = sorted((root / "tests").rglob("test_*.py"))
    return [str(path.relative_to(root)) for path in files if "mark.cuda" in path.read_text(encoding="utf-8")]


def plan(small: bool, pack: Path | None, torchcodec: bool = False) -> list[Step]:
    """All steps, the most worth first. pack: clips to train the gaze model on, in the time that is left. torchcodec:
    ask the question once more with its decoder."""
    device = ("--device", "cpu") if small else ()
    tests = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-rA", "--durations=5", "-p", "no:cacheprovider"]
    tests += ["tests/test_cuda.py", "-k", "golden or backends"] if small else marked()
    speed = ["--batches", "1", "--ratios", "0.02", "--dtypes", "bf16", "--repeats", "1", "--limit", "0.1"]
    profiled = ["--batches", "1", "--ratios", "0.009"]
    latency = ["--size", "tiny", "--points", "2", "--repeats", "1", "--limit", "0.2"]
    video = ["--pixels", "320x240", "--frames", "24", "--warm-up", "17"]
    question = [*video, "--size", "tiny", "--tile", "112", "--tiles", "4", "--thumbnails", "2"]
    question += ["--gaze", "pixel-diff", "--ratio", "0.05"]
    if not small:
        speed = ["--gaze", "bundled", "--batches", "1,8,32,128,512", "--ratios", "0.1,0.75,preset", "--repeats", "3"]
        speed += ["--dtypes", "bf16,fp32", "--captures", "graphs,off", "--limit", "1", "--minutes", "0.7"]
        profiled = []
        latency = ["--size", "nvila-8b", "--repeats", "2", "--limit", "5"]
        video = question = []
    videos = ("--video-folder", "{work}/videos")
    steps = [
        Step("videos", python("question.py", *video, *videos, "--make-only"), 240, background=True),
        Step("machine", python("gpu.py", "--facts", "{work}/machine.json", *device), 60, ("machine.json",)),
        Step("tests", tests, 150, environment={"AUTOGAZE_TEST_DEVICE": "cpu"} if small else {}),
        Step(
            "gaze_speed",
            python("gaze_speed.py", *speed, *device, "--out", "{work}/gaze_speed.json"),
            120,
            ("gaze_speed.json",),
            ("gaze_speed.png",),
        ),
        Step(
            "profile",
            python("gaze_profile.py", *profiled, *device, "--out", "{work}/gaze_profile.json"),
            40,
            ("gaze_profile.json",),
        ),
        Step(
            "latency",
            python("latency.py", *latency, *device, "--out", "{work}/latency.json"),
            150,
            ("latency.json",),
            ("latency.png",),
        ),
        Step(
            "question",
            python("question.py", *question, *videos, *device, "--out", "{work}/question.json"),
            120,
            ("question.json",),
            after="videos",
        ),
    ]
    if torchcodec:
        again = [*question, *(() if small else ("--gaze", "bundled")), "--decoder", "torchcodec"]
        command = python("question.py", *again, *videos, *device, "--out", "{work}/torchcodec.json")
        steps.append(Step("torchcodec", command, 90, ("torchcodec.json",), after="videos"))
    if pack is not None:
        training = python("../scripts/train_gaze_real.py", str(pack), "{work}/train", *device)
        training += ["--small"] if small else ["--minutes", "{minutes}"]
        kept = ("train/gaze/model.safetensors", "train/metrics.jsonl", "train/calibration.json")
        steps.append(Step("train", training, 900, ("train/calibration.json",), kept))
    return steps


class Runner:
    """Runs steps until the time is over and keeps OUT up to date."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.end = out, time.monotonic() + 60 * minutes - SPARE
        self.work = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        self.report: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "steps": {}}
        self.running: dict[str, tuple[Step, subprocess.Popen[bytes], float]] = {}
        self.spent: dict[str, float] = {}  # seconds of what has ended, whoever waited for it and when
        out.mkdir(parents=True, exist_ok=True)

    def run(self, steps: Sequence[Step]) -> int:
        """-> how many failed."""
        for step in steps:
            if step.after in self.running:
                self._wait(step.after)
            if self.end - time.monotonic() < 2:
                self._note(step, "left out", "no time left", 0.0)
                continue
            self._start(step)
            if not step.background:
                self._wait(step.name)
        for name in list(self.running):
            self._wait(name)
        shutil.rmtree(self.work, ignore_errors=True)
        return sum(step["state"] == "failed" for step in self.report["steps"].values())

    def _start(self, step: Step) -> None:
        left = max((min(self.end - time.monotonic(), step.seconds) - SPARE) / 60, 0.1)
        values = {"{work}": str(self.work), "{minutes}": f"{left:.2f}"}
        command = [functools.reduce(lambda text, pair: text.replace(*pair), values.items(), p) for p in step.command]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | step.environment
        # The checkout stands on the path, so that nothing needs to be installed.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        with (self.work / f"{step.name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=HERE.parent,
                env=environment,
                start_new_session=True,  # so that its children end with it
            )
        start = time.monotonic()
        self.running[step.name] = (step, process, start)

        def ended() -> None:
            process.wait()
            self.spent[step.name] = time.monotonic() - start

        threading.Thread(target=ended, daemon=True).start()

    def _wait(self, name: str) -> None:
        step, process, start = self.running[name]  # it stays there until it has ended: an interrupt must find it
        limit = min(start + step.seconds, self.end) - time.monotonic()
        why = ""
        try:
            code = process.wait(max(limit, 0.1))
        except subprocess.TimeoutExpired:
            why = f"stopped after {time.monotonic() - start:.0f} s"
            _end(process)
            code = None
        del self.running[name]
        spent = self.spent.get(name, time.monotonic() - start)
        if code:
            why = last_words((self.work / f"{name}.log").read_text(errors="replace")) or f"exit code {code}"
        self._note(step, "ok" if code == 0 else "cut off" if code is None else "failed", why, spent)

    def stop(self) -> None:
        """Ends what runs; what it has written is kept."""
        for name in list(self.running):
            step, process, start = self.running.pop(name)
            _end(process)
            self._note(step, "cut off", "interrupted", time.monotonic() - start)

    def _note(self, step: Step, state: str, why: str, spent: float) -> None:
        results = {}
        for name in step.results:
            try:
                results[Path(name).stem] = json.loads((self.work / name).read_text())
            except (OSError, ValueError):
                continue
        self.report["steps"][step.name] = {"state": state, "why": why, "seconds": spent, **results}
        (self.out / "gpu.json").write_text(json.dumps(self.report, indent=1) + "\n")
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as archive:
            for log in sorted(self.work.glob("*.log")):
                archive.add(log, log.name)
        for name in step.keep:
            path = self.work / name
            if path.exists() and path.stat().st_size <= LARGEST:
                shutil.copy(path, self.out / path.name)
        print(f"{step.name}: {state} in {spent:.0f} s{': ' + why if why else ''}", flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a step and its children to end, and makes them."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue


def last_words(log: str) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def facts(path: Path, device_name: str | None) -> None:
    """The machine and its two ceilings: bytes a second of a large copy (read and written), operations of a product."""
    import torch

    from autogaze_mllm.common.environment import describe
    from gaze_speed import matmul_rate, seconds

    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = 1 << (32 if device.type == "cuda" else 26)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = seconds(lambda: target.copy_(source), 5, 2, device)
    rates = {"bf16": torch.bfloat16, "fp32": torch.float32}
    result = {
        **describe(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "copy_gb_per_second": 2 * size / spent / 1e9,
        "matmul_tflops": {name: matmul_rate(dtype, device) / 1e12 for name, dtype in rates.items()},
    }
    if device.type == "cuda":
        result["driver"] = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,memory.total,clocks.sm", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        ).stdout.strip()
    path.write_text(json.dumps(result, indent=2) + "\n")


def table(report: dict[str, Any]) -> str:
    """The results in a few lines: what came of each step, then the figures that matter."""
    sys.path.insert(0, str(HERE.parent))  # nothing needs to be installed
    import gaze_profile
    import gaze_speed
    import latency
    import question

    lines = ["", "step         state     seconds"]
    for name, step in report["steps"].items():
        lines.append(f"{name:<12} {step['state']:<8} {step['seconds']:>7.0f}  {step['why']}")
        if "machine" in step:
            found = step["machine"]
            rates = ", ".join(f"{kind} {rate:.1f} TFLOP/s" for kind, rate in found["matmul_tflops"].items())
            lines.append(f"  {found['device']}: copy {found['copy_gb_per_second']:.0f} GB/s, matmul {rates}")
        modules = {"gaze_speed": gaze_speed, "gaze_profile": gaze_profile, "latency": latency, "question": question}
        for kind, module in modules.items():
            if kind in step and step[kind]["rows"]:
                lines += ["  " + line for line in module.table(step[kind]["rows"]).splitlines()]  # type: ignore[attr-defined]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("gpu_check"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=15, help="for all steps together (default 15)")
    parser.add_argument("--small", action="store_true", help="every step in small, on the CPU")
    parser.add_argument("--only", help="names of steps, with commas between them")
    parser.add_argument("--train", metavar="PACK", type=Path, help="last, train the gaze model on packed clips")
    parser.add_argument("--torchcodec", action="store_true", help="ask the question with the card's decoder, too")
    parser.add_argument("--facts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.facts is not None:
        facts(arguments.facts, arguments.device)
        return 0
    steps = plan(arguments.small, arguments.train, arguments.torchcodec)
    if arguments.only:
        wanted = arguments.only.split(",")
        unknown = sorted(set(wanted) - {step.name for step in steps})
        if unknown:
            parser.error(f"unknown step {unknown[0]!r}; known: {', '.join(step.name for step in steps)}")
        steps = [step for step in steps if step.name in wanted]
    runner = Runner(arguments.out, arguments.minutes)

    def interrupted(number: int, _: object) -> None:
        runner.stop()
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)
    failed = runner.run(steps)
    text = table(runner.report)
    (arguments.out / "table.txt").write_text(text + "\n")
    print(text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
