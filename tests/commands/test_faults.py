"""The command line where the machine, the terminal or the user get in its way, and where the fault is its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autogaze_mllm import cli
from autogaze_mllm.cli import main
from autogaze_mllm.commands.arguments import config_file, options
from autogaze_mllm.common.errors import InputError

from ..helpers.files.finetune_files import mixed_data
from ..helpers.forked import command, forked
from ..helpers.paths import ROOT
from ..helpers.training_models import write_clips


def failing(error: BaseException) -> Any:
    """A parser of one verb that fails so."""

    def run(_: object) -> int:
        raise error

    return lambda *_: SimpleNamespace(run=run)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("a file: is wrong"), 2, "error: a file: is wrong"),
        (InputError("a\nb\x1b[31m\udcff"), 2, "error: a\\nb\\x1b[31m\\udcff"),  # names that would break the line
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "error: too little memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: too little memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "error: too little memory"),
        (OSError(28, "No space left on device", "/data/x"), 2, "error: /data/x: nothing more can be written (No space"),
        (OSError(36, "File name too long", "x" * 5000), 2, "error: xxx"),
        (PermissionError(13, "Permission denied", "/data/x"), 2, "error: /data/x: Permission denied"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), 2, "make room"),
    ],
)
def test_what_is_not_our_fault_is_one_line(error, code, told, monkeypatch, capsys) -> None:
    monkeypatch.setattr(config_file, "parse", failing(error))
    assert main([]) == code
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.startswith("autogaze-mllm: ") and told in line and line.isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "CLIP", "What?", "--model", "LONG"],
        ["ask", "CLIP", "What?", "--index", "LONG"],
        ["gaze", "CLIP", "--gaze", "pixel-diff", "--out", "LONG.mp4"],
        ["gaze", "CLIP", "--gaze", "pixel-diff", "--report", "LONG"],
        ["gaze", "CLIP", "--gaze", "LONG"],
        ["index", "LONG", "--out", "here"],
        ["eval", "report", "LONG"],
        ["eval", "hlvid", "--data", "LONG", "--out", "here"],
        ["merge", "LONG", "here"],
        ["export-llm", "LONG", "here"],
        ["serve", "LONG"],
        ["train-gaze", "LONG", "--out", "here"],
        ["finetune", "--data", "LONG", "--output", "here"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_name_that_no_file_can_have_is_one_line_and_leaves_nothing(
    arguments, clip, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    long = "x" * 5000
    assert main([word.replace("CLIP", str(clip)).replace("LONG", long) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().replace("\r", "\n").splitlines()[-1:]
    assert "xxx" in line and len(line) < 800
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape"), AssertionError(), OSError(2, "gone", "x")])
def test_a_fault_of_ours_keeps_its_traceback_says_so_and_exits_1(error, monkeypatch, capsys) -> None:
    monkeypatch.setattr(config_file, "parse", failing(error))
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said and "raise error" in said
    last = said.splitlines()[-1]
    assert last.startswith("autogaze-mllm: error: ") and type(error).__name__ in last
    assert "is a fault of autogaze-mllm" in last and "not of your input: please report it" in last


def test_ctrl_c_within_an_import_that_makes_another_error_of_it_is_an_interruption(monkeypatch, capsys) -> None:
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as pressed:
            raise ImportError("numpy could not be imported") from pressed
    except ImportError as error:
        monkeypatch.setattr(config_file, "parse", failing(error))
    assert main([]) == cli.INTERRUPTED and capsys.readouterr().err == "autogaze-mllm: interrupted\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a file: is wrong"), 2, "judge: error: a file: is wrong\n"),
        (KeyboardInterrupt(), 130, "judge: interrupted\n"),
    ],
)
def test_programs_of_the_repository_end_as_the_verbs_do(error, code, said, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/judge.py", "clip.mp4"])
    parser = cli.program_parser("What it does.")
    parser.add_argument("video")

    def run(given: argparse.Namespace) -> None:
        assert given.video == "clip.mp4"
        raise error

    assert cli.run_program(parser, run) == code and capsys.readouterr().err == said
    assert cli.run_program(parser, lambda given: None) == 0 and cli.run_program(parser, lambda given: 1) == 1


# -- output ----------------------------------------------------------------------------------------------------------


def into(target: str, arguments: list[str]) -> tuple[int, str]:
    """The command with its standard output into a device or a closed pipe. -> its code, and what it said."""

    def run() -> int:
        if target == "pipe":
            read, write = os.pipe()
            os.close(read)
        else:
            write = os.open(target, os.O_WRONLY)
        os.dup2(write, 1)
        code = main(arguments)
        sys.stdout.flush()  # as the interpreter does at its end
        return code

    code, _, err = forked(run)
    return code, err


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["cache", "ls"]])
def test_output_that_nobody_takes_is_no_traceback(arguments) -> None:
    assert into("pipe", arguments) == (cli.PIPE_CLOSED, "")
    code, said = into("/dev/full", arguments)
    assert code == 2 and said == "autogaze-mllm: error: the output cannot be written (No space left on device)\n"


@pytest.mark.slow
def test_a_closed_output_and_a_terminal_of_few_characters_are_no_traceback(tmp_path) -> None:
    """In processes of their own, as the streams are then made."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT), "COLUMNS": "0"}
    missing = tmp_path / "Müller\udcff.mp4"
    script = f'"{sys.executable}" -m autogaze_mllm'
    done = subprocess.run(
        f"{script} cache ls >&-; echo $?", shell=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "0" and done.stderr == ""
    done = subprocess.run(
        [sys.executable, "-m", "autogaze_mllm", "gaze", missing], capture_output=True, env=environment
    )
    assert done.returncode == 2 and b"M\\xfcller\\udcff.mp4: no such file" in done.stderr
    assert done.stderr.count(b"\n") == 1


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder / "train", 3)
    return folder


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(clip, videos, two_videos, tmp_path) -> None:
    overlay = ["gaze", clip, "--gaze", "pixel-diff", "--frames", "4", "--json", "--out", tmp_path / "overlay.mp4"]
    label = ["label", videos, "--frames", "1", "--loss", "0.3", "--batch", "1", "--json", "--out", tmp_path / "l.json"]
    label += ["--max-ratio", "0.05"]
    ask = ["eval", "hlvid", "--data", two_videos, "--model", "scripted:right", "--json", "--out", tmp_path / "run"]
    train = ["train-gaze", videos, "--device", "cpu", "--json", "--frames", "1", "--batch-size", "1", "--steps", "1"]
    train += ["--val-clips", "0", "--max-patches", "2", "--out", tmp_path / "train"]
    for arguments, again, size in (
        (overlay, [], 4096),
        (label, [], 100),
        (ask, ["--resume"], 1200),
        (train, [], 100_000),
    ):
        code, _, said = command(arguments, file_bytes=size)
        last = said.splitlines()[-1]
        assert code == 2 and "Traceback" not in said and "make room" in last and str(tmp_path) in last, said
        code, out, said = command([*arguments, *again])
        assert code == 0, said
        assert json.loads(out)
        left = [path for path in tmp_path.rglob(".*") if path.name not in (".run.lock", ".run-00000.lock")]
        assert not left  # of what could not be written


@pytest.mark.slow
def test_a_full_disk_in_fine_tuning_leaves_no_half_checkpoint(tmp_path) -> None:
    data = mixed_data(tmp_path / "data")
    arguments = ["finetune", "--data", data, "--output", tmp_path / "out", "--cpu", "--json", "--gaze", "pixel-diff"]
    arguments += ["--frames", "4", "--train", "sft", "--max-steps", "1", "--save-steps", "1", "--workers", "0"]
    arguments += ["--cache", tmp_path / "gazed"]
    code, _, said = command(arguments, file_bytes=1_500_000)
    assert code == 2 and "Traceback" not in said and "make room" in said.splitlines()[-1], said
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert command([*arguments, "--resume"])[0] == 0


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["hpu", "privateuseone", "xpu:3", "", "warp\n9", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(device) -> None:
    with pytest.raises(InputError, match="device") as error:
        options.usable_device(device)
    assert repr(device) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", ["", "3", "3x", "1y2", "0x5", "-1x5", "1x2x3", "9999999x1"])
def test_a_size_that_is_none_is_one_line(size) -> None:
    with pytest.raises(InputError, match="expected WIDTHxHEIGHT"):
        options.size_of(size)
    assert options.size_of("3840x2160") == (3840, 2160)


def test_a_question_that_is_no_text_is_refused(clip, capsys) -> None:
    assert main(["ask", str(clip), "What\udcff?"]) == 2
    assert "the question is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", b"[" * 10**6),
        ("x.yaml", b"[" * 10**5),
        ("x.json", b'{"frames": NaN}'),
        ("x.yaml", b"frames: \xff"),
        ("x.yaml", b"? [1, 2]\n: 3"),
        ("x.yaml", b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"\n".join(
            b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]" % (n, n, *[n - 1] * 9) for n in range(98, 110)
        ) + b"\nframes: *m\n"),
    ],
)  # fmt: skip
def test_options_from_a_file_that_is_none_are_one_line(name, content, clip, tmp_path, capsys) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["gaze", str(clip), "--config", str(tmp_path / name)]) == 2
    line = capsys.readouterr().err.removesuffix("\n")
    assert name in line and "\n" not in line and len(line) < 1000


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--max-tiles=100000000", "max_tiles must be at least 1, and at most 1024"),
        ("--frames=99999999999999999999999", "frames must be"),
        ("--loss=nan", "loss must be at least 0"),
        ("--loss=inf", "loss must be a finite number"),
        ("--predicted-loss=inf", "predicted_loss must be a finite number"),
    ],
)
def test_numbers_that_are_too_large_are_refused(option, told, clip, capsys) -> None:
    assert main(["gaze", str(clip), option]) == 2
    assert told in capsys.readouterr().err


def test_large_numbers_of_frames_take_no_memory_that_the_video_does_not_need(clip, capsys) -> None:
    large = ["--frames", "999999999999", "--chunk-frames", "999999999999", "--thumbnails", "999999999999"]
    assert main(["gaze", str(clip), "--gaze", "pixel-diff", "--json", *large]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 20


@pytest.mark.parametrize(("option", "value"), [("--seed", "-1"), ("--seed", str(2**32)), ("--limit", "0")])
def test_numbers_of_an_evaluation_are_refused(option, value, two_videos, tmp_path, capsys) -> None:
    assert main(["eval", "hlvid", "--data", str(two_videos), "--out", str(tmp_path / "run"), option, value]) == 2
    assert option in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["PROCESSES=abc", "PROCESSES=0", "PROCESSES=-2", "NODES=two", "PORT=9;ls", "NODE=x"])
def test_the_launcher_refuses_what_is_no_number(given) -> None:
    name, value = given.split("=")
    environment = {**os.environ, "MODEL": "m", "DATA": "d", "OUTPUT": "o", "PYTHON": "echo", name: value}
    done = subprocess.run(["bash", ROOT / "scripts/finetune.sh"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "") and name in done.stderr and done.stderr.count("\n") == 1
