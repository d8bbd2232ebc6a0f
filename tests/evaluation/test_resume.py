"""Runs that are killed, resumed, refused, and shared out over processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from autogaze_mllm.cli import main
from autogaze_mllm.evaluation.benchmarks import BENCHMARKS
from autogaze_mllm.evaluation.benchmarks.synthetic import write_made_up
from autogaze_mllm.mllm.tiny import tiny_model

from ..helpers.eval_runs import command, evaluate, lines_of, refused, without_times
from ..helpers.forked import start


def test_twenty_kills_lose_nothing_and_repeat_nothing(tmp_path):
    """Each kill comes at a random moment: after some answers, and then a little later."""
    data, out, draw = write_made_up("hlvid", tmp_path / "data", videos=80), tmp_path / "run", random.Random(7)
    arguments = [*command("hlvid", data, out), "--json"]
    kept: list[dict[str, Any]] = []
    kills = 0
    while kills < 20:
        pid = start(arguments if not (out / "run.json").exists() else [*arguments, "--resume"])
        wanted = len(kept) + draw.randrange(0, 7)
        deadline = time.monotonic() + 60
        while len(lines_of(out)) < wanted:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
        time.sleep(draw.random() * 0.004)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        now = lines_of(out)
        assert now[: len(kept)] == kept  # what was there is there
        kept = now
    total = len(BENCHMARKS["hlvid"](data).questions())
    assert 20 < len(kept) < total  # the kills came while it was at work
    assert main([*arguments, "--resume"]) == 0
    ids = [answer["id"] for answer in lines_of(out)]
    assert ids == [f"q{number:04}" for number in range(total)]  # each once, in order
    assert json.loads((out / "report.json").read_text())["scores"]["official"]["score"]["correct"] == total


def test_a_torn_line_is_cut_off_and_asked_again(benchmark_data, tmp_path, capsys):
    whole = evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path)
    path = tmp_path / "answers-00000.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 25])
    again = evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path, "--resume")
    assert without_times(again) == without_times(whole)
    assert [answer["id"] for answer in lines_of(tmp_path)] == [f"q{number:04}" for number in range(14)]


def test_another_number_of_processes_goes_on_with_a_run(benchmark_data, tmp_path, monkeypatch, capsys):
    whole = evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path / "whole")
    out = tmp_path / "run"
    evaluate(capsys, "hlvid", benchmark_data / "hlvid", out)
    path = out / "answers-00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:30])  # killed, in the middle of a line
    for rank in (2, 1, 0):  # three processes, the first one last: it reports
        for name, value in (("RANK", rank), ("WORLD_SIZE", 3), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        assert main([*command("hlvid", benchmark_data / "hlvid", out), "--resume"]) == 0
    assert len(list(out.glob("answers-*.jsonl"))) == 3
    assert sorted(answer["id"] for answer in lines_of(out)) == [f"q{number:04}" for number in range(14)]
    assert without_times(json.loads((out / "report.json").read_text())) == without_times(whole)


def test_a_run_is_only_continued_with_its_own_settings(benchmark_data, tmp_path, capsys):
    arguments = command("hlvid", benchmark_data / "hlvid", tmp_path)
    assert main([*arguments, "--limit", "5"]) == 0
    capsys.readouterr()
    assert "holds a run already; go on with --resume" in refused(capsys, [*arguments, "--limit", "5"])
    line = refused(capsys, [*arguments, "--resume", "--frames", "16", "--max-new-tokens", "4"])
    assert "begun with other settings" in line
    assert "limit: 5 -> None; max_new_tokens: 16 -> 4; seen.video.frames: 32 -> 16" in line
    other = command("hlvid", benchmark_data / "hlvid", tmp_path, "--limit", "5", "--resume", model="scripted:wrong")
    assert "model.name: scripted:right -> scripted:wrong" in refused(capsys, other)


def test_a_folder_that_two_processes_wrote_reads_again_with_its_first_answers(benchmark_data, tmp_path, capsys, caplog):
    whole = evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path)
    path = tmp_path / "answers-00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    others = [json.loads(line) for line in lines]
    for answer in others:
        answer |= {"raw": "other", "official": None, "strict": None}
    (tmp_path / "answers-00001.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in others[:5]))
    path.write_bytes(b"".join(lines) + json.dumps(others[7]).encode() + b"\n")
    again = evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path, "--resume")
    assert without_times(again) == without_times(whole)
    (told,) = [record.message for record in caplog.records if "two processes wrote here" in record.message]
    assert "6 answers" in told and len(lines_of(tmp_path)) == 20


def test_a_second_process_is_refused_and_told_of_the_first_which_goes_on(tmp_path, monkeypatch, capsys):
    """Also with --resume, and whatever it was begun with; a killed one leaves no lock behind."""
    data, out = write_made_up("hlvid", tmp_path / "data", videos=60), tmp_path / "run"
    arguments = command("hlvid", data, out)
    pid = start(arguments)
    deadline = time.monotonic() + 60
    while not lines_of(out):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
    os.kill(pid, signal.SIGSTOP)  # at work for as long as is needed here
    for more in ([], ["--resume"], ["--frames", "3"]):
        line = refused(capsys, [*arguments, *more])
        assert str(out) in line and f"another process ({pid} on {socket.gethostname()}, since 2" in line
    with monkeypatch.context() as launcher:  # one of several processes, which would write to a file of its own
        for name, value in (("RANK", 1), ("WORLD_SIZE", 2), ("LOCAL_RANK", 1)):
            launcher.setenv(name, str(value))
        assert f"another process ({pid} on" in refused(capsys, [*arguments, "--resume"])
    assert [path.name for path in out.glob("answers-*")] == ["answers-00000.jsonl"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert main([*arguments, "--resume", "--json"]) == 0
    assert len({answer["id"] for answer in lines_of(out)}) == len(lines_of(out)) > 100


def test_models_are_told_apart_by_content_and_not_by_their_folders_name(two_videos, tmp_path, capsys):
    """A folder that holds another model now is refused; the same model in another place goes on."""
    for seed in (0, 1):
        base, processor = tiny_model("llava", image_size=64)
        with torch.no_grad():
            base.get_input_embeddings().weight[5:] += seed
        for folder in (tmp_path / str(seed), tmp_path / "moved" / str(seed)):
            base.save_pretrained(folder)
            processor.save_pretrained(folder)
    options = ["--frames", "2", "--limit", "2", "--gaze", "random"]
    first = command("hlvid", two_videos, tmp_path / "run", *options, model=str(tmp_path / "0"))
    assert main(first) == 0
    moved = command("hlvid", two_videos, tmp_path / "run", *options, "--resume", model=str(tmp_path / "moved" / "0"))
    assert main(moved) == 0
    shutil.rmtree(tmp_path / "0")
    shutil.copytree(tmp_path / "1", tmp_path / "0")
    capsys.readouterr()
    assert main([*first, "--resume"]) == 2
    assert "model.weights: " in capsys.readouterr().err.splitlines()[-1]


def test_two_processes_and_one_report_the_same(two_videos, tmp_path, monkeypatch, capsys):
    """With a model; both processes really run at once, and share out the videos."""
    arguments = ("--frames", "4", "--json")
    alone = evaluate(capsys, "hlvid", two_videos, tmp_path / "one", *arguments[:-1], model=None)
    started = []
    for rank in (0, 1):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        started.append(start(command("hlvid", two_videos, tmp_path / "two", *arguments, model=None)))
    for pid in started:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    parts = [{a["video"] for a in map(json.loads, p.open())} for p in sorted((tmp_path / "two").glob("answers-*"))]
    assert parts == [{"video_000.mp4"}, {"video_001.mp4"}]
    together = json.loads((tmp_path / "two" / "report.json").read_text())
    assert without_times(together) == without_times(alone)


@pytest.mark.slow
def test_torchrun_shards_a_run(tmp_path):
    """Also with a video missing: the process that has it must not end the others."""
    folder = write_made_up("hlvid", tmp_path / "data")
    (folder / "videos" / "video_001.mp4").unlink()
    arguments = command("hlvid", folder, tmp_path / "run")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "autogaze_mllm.cli"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["scores"]["n"] == 14 and report["scores"]["failed"] == 4
    assert report["scores"]["official"]["score"]["correct"] == 10
