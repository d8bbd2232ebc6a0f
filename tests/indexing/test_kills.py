"""Workers that are killed, runs that are stopped or killed, and what goes on from there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.common.compute.distributed import Shard
from autogaze_mllm.indexing.attempts import Attempts
from autogaze_mllm.indexing.job import IndexJob
from autogaze_mllm.indexing.run import run_index
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

from ..helpers.index_runs import Deadly, Slow, half_files, make_videos, records, stored, tiny_base
from ..helpers.paths import ROOT

BLACK = "10 black.mp4"  # between 1.mp4 and 2.mp4


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = make_videos(tmp_path_factory.mktemp("videos"), 4)
    write_video(folder / BLACK, [np.zeros((64, 96, 3), np.uint8)] * 6, fps=6)
    return folder


def job(videos: Path, out: Path, model: Path, selector: am.PixelDiffSelector) -> IndexJob:
    return IndexJob(str(videos), str(out), model=str(model), gaze=selector, overrides={"frames": 4, "loss": 0.5})


def deadly(folder: Path, times: int) -> Deadly:
    folder.mkdir(exist_ok=True)
    return Deadly(folder, times)


def attempts(out: Path) -> list[Path]:
    return list((out / ".attempts").iterdir())


def test_a_video_that_kills_its_worker_once_is_done_all_the_same(videos, model, tmp_path):
    result = run_index(job(videos, tmp_path / "out", model, deadly(tmp_path / "deaths", 1)), workers=1)
    assert not result.failed and result.made == 5 and len(list((tmp_path / "deaths").iterdir())) == 1
    assert list(records(tmp_path / "out")) == ["0.mp4", "1.mp4", BLACK, "2.mp4", "3.mp4"]
    assert not attempts(tmp_path / "out")
    run_index(job(videos, tmp_path / "alive", model, deadly(tmp_path / "none", 0)), workers=1)
    assert stored(tmp_path / "alive") == stored(tmp_path / "out")


def test_one_that_kills_it_twice_is_set_aside_and_the_others_are_done(videos, model, tmp_path):
    out, deaths = tmp_path / "out", tmp_path / "deaths"
    again = job(videos, out, model, deadly(deaths, 99))
    result = run_index(again, workers=2)
    (failed,) = result.failed
    assert failed.path == BLACK and len(list(deaths.iterdir())) == 2
    assert "set aside" in failed.error and "was killed (signal 9) in each of 2 tries" in failed.error
    assert sum(line["error"] is None for line in records(out).values()) == 4
    assert run_index(again, workers=1).made == 0  # it stays aside ...
    assert run_index(again, workers=1, retry_failed=True).failed  # ... until it is asked for
    assert len(list(deaths.iterdir())) == 4
    for mark in deaths.iterdir():  # now there is memory for it
        mark.unlink()
    assert not run_index(replace(again, gaze=deadly(deaths, 0)), workers=1, retry_failed=True).failed


def test_tries_count_on_the_disk_over_runs_that_were_killed(videos, model, tmp_path):
    """As a system leaves it that kills the whole job, twice at the same video."""
    out = tmp_path / "out"
    code = """
import os, sys
from pathlib import Path
from autogaze_mllm.indexing.attempts import Attempts
with Attempts(Path(sys.argv[1])).counted(sys.argv[2]):
    os._exit(9)
"""
    for count in (1, 2):
        subprocess.run([sys.executable, "-c", code, out, BLACK], cwd=ROOT, timeout=120)
        assert Attempts(out).count(BLACK) == count
    result = run_index(job(videos, out, model, deadly(tmp_path / "deaths", 99)), workers=1)
    assert [record.path for record in result.failed] == [BLACK] and not list((tmp_path / "deaths").iterdir())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_whole_files_and_goes_on(videos, model, tmp_path, sent):
    out = tmp_path / "out"

    def stop() -> None:
        while not (out / "index-00000.jsonl").is_file() or not (out / "index-00000.jsonl").read_bytes():
            time.sleep(0.01)
        os.kill(os.getpid(), sent)

    watcher = threading.Thread(target=stop, daemon=True)
    # A shell's background job, which tests may be, overlooks Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watcher.start()
        with pytest.raises(KeyboardInterrupt):
            run_index(job(videos, out, model, Slow()), workers=2)
        watcher.join()
    finally:
        signal.signal(signal.SIGINT, before)
    done = records(out)
    assert 1 <= len(done) < 5 and not half_files(out)
    assert {path.name for path in out.glob("*.safetensors")} == {line["gazed"] for line in done.values()}
    assert all(len(am.GazedVideo.load(out / line["gazed"])) for line in done.values())
    assert not attempts(out)  # what was under way is not held against a video
    result = run_index(job(videos, out, model, Slow()), workers=1)
    assert result.made == 5 - len(done) and not result.failed


@pytest.mark.slow
def test_ctrl_c_while_workers_are_being_started_is_one_line(videos, model, tmp_path):
    """A terminal sends it to all processes, also to the one that imports what workers need."""
    command = [sys.executable, "-m", "autogaze_mllm", "index", videos, "--out", tmp_path / "out", "--model", model]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*map(str, command), "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )
    others = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(others.read_text().split()) < 2:  # the server of multiprocessing, and its tracker
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)  # it is at its imports, which take seconds
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip() and "video/s" not in line]
    assert (process.returncode, lines) == (130, ["autogaze-mllm: interrupted"])


def test_two_processes_do_not_write_one_folder(videos, model, tmp_path):
    """A second one is refused while the first is at work; its own part of a launched run is its own."""
    from autogaze_mllm.common.storage.locks import run_lock

    code = """
import sys, time
from pathlib import Path
from autogaze_mllm.common.storage.locks import run_lock
with run_lock(Path(sys.argv[1]), "-00000"):
    print("here", flush=True)
    sys.stdin.read()
"""
    out = tmp_path / "out"
    other = subprocess.Popen(
        [sys.executable, "-c", code, out], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "here\n"
        made = job(videos, out, model, Slow())
        with pytest.raises(am.InputError, match=f"another process .{other.pid} on .* is at work here"):
            run_index(made, workers=1)
        assert len(run_index(made, workers=2, shard=Shard(1, 2)).records) == 2
    finally:
        other.communicate("", timeout=60)
    assert len(records(out)) == 2
    with run_lock(out, "-00000"):
        pass


@pytest.mark.slow
def test_kill_9_of_everything_at_any_moment_loses_no_video(videos, model, tmp_path):
    """The command itself, its workers with it, killed twice; what it then comes to is what one run comes to."""
    many = make_videos(tmp_path / "many", 16, seed=20)
    command = ["index", str(many), "--model", str(model), "--gaze", "pixel-diff", "--json", "--frames", "6", "--out"]
    assert main([*command, str(tmp_path / "whole"), "--workers", "1"]) == 0
    out, kept = tmp_path / "out", 0
    again = [*command, str(out), "--workers", "2"]
    for number in range(2):
        process = subprocess.Popen([sys.executable, "-m", "autogaze_mllm", *again], start_new_session=True)
        deadline = time.monotonic() + 200
        while _lines(out) < min(kept + 3 + number, 15):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert _lines(out) >= kept
        kept = _lines(out)
    assert main(again) == 0
    assert stored(out) == stored(tmp_path / "whole")


def _lines(out: Path) -> int:
    found = 0
    for path in out.glob("index*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # parts that were joined meanwhile
            found += path.read_bytes().count(b"\n")
    return found


@pytest.mark.slow
def test_torchrun_does_not_end_a_process_that_is_at_work_when_another_has_failures(videos, model, tmp_path):
    """The first process has one video, which is damaged, and is done at once; the other one has all the work."""
    folder, out = make_videos(tmp_path / "videos", 3, seed=40), tmp_path / "out"
    (folder / "0.mp4").write_text("not a video")
    (folder / "2.mp4").write_text("nor this")
    write_video(folder / "1.mp4", moving_scene(640, 360, 96), fps=12)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _free_port()]
    command += ["-m", "autogaze_mllm", "index", folder, "--out", out, "--model", model, "--gaze", "pixel-diff"]
    command += ["--frames", "96", "--max-tiles", "16", "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["videos"] == told["tried"] == 3 and [one["path"] for one in told["failed"]] == ["0.mp4", "2.mp4"]
    assert [name for name, line in records(out).items() if line["error"] is None] == ["1.mp4"]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
