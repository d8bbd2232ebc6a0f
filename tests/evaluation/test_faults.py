"""Runs, answers and data of evaluations that were damaged, made by others, or named alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autogaze_mllm.cli import main
from autogaze_mllm.evaluation.benchmarks.synthetic import MARK, ensure_made_up
from autogaze_mllm.mllm.tiny import tiny_model

from ..helpers.eval_runs import command, evaluate, lines_of, refused
from ..helpers.files.eval_data import write_sample
from ..helpers.programs import run_script
from ..helpers.tiny_models import tiny_gaze
from ..helpers.training_models import small_gaze, write_clips


@pytest.fixture(scope="module")
def finished(benchmark_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(command("hlvid", benchmark_data / "hlvid", folder)) == 0
    return folder


def changed(path: Path, *keys: str, value: Any) -> None:
    """Sets what stands below these keys; None for a value that is to go."""
    stored = json.loads(path.read_text())
    node = stored
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    if value is None:
        del node[keys[-1]]
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("settings",), [1], "'settings' must be an object"),
        (("settings",), None, "'settings' is missing"),
        (("questions",), "q0001", "'questions' must be a list, each text"),
        (("questions",), [1], "'questions' must be a list, each text"),
        (("environment",), 3, "'environment' must be an object"),
        (("format",), [9], "format [9]"),
        (("settings", "benchmark"), "nothing", "'nothing' is not a benchmark"),
        (("settings", "benchmark"), ["hlvid"], "'benchmark' must be text"),
        (("settings", "split"), None, "'split' is missing"),
        (("settings", "model"), "scripted", "'model' must be an object"),
        (("settings", "model", "name"), 5, "'name' must be text"),
        (("settings", "seen"), None, "'gaze' is missing"),
        (("settings", "max_new_tokens"), "16", "'max_new_tokens' must be a whole number"),
    ],
)
def test_a_run_file_of_wrong_types_is_one_line(keys, value, told, finished, tmp_path, capsys) -> None:
    shutil.copytree(finished, tmp_path / "run")
    changed(tmp_path / "run/run.json", *keys, value=value)
    for arguments in (["report", str(tmp_path / "run")], ["compare", str(tmp_path / "run"), str(finished)]):
        line = refused(capsys, ["eval", *arguments])
        assert "run.json" in line and told in line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"[1]", "expected a json object"),
        (b'{"id": "q"}', "'video' is missing"),
        (b'{"id": 3, "video": "v", "answer": "A"}', "'id' must be text"),
        (b'{"id": "q", "video": "v", "answer": "A", "tokens": {"visual": "9"}}', "'tokens' must be an object, each"),
        (b'{"id": "q", "video": "v", "answer": "A", "seconds": {"llm": NaN}}', "'seconds' must be an object, each"),
        (b'{"id": "q", "video": "v", "answer": "A", "raw": null}', "'raw' must be text"),
        (b'{"id": "M\xfcller", "video": "v", "answer": "A"}', "not UTF-8 text"),
        (b"[" * 10**5, "nested too deeply"),
    ],
)
def test_an_answer_of_wrong_types_is_named_with_its_line(line, told, finished, tmp_path, capsys) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/answers-00001.jsonl").write_bytes(line + b"\n")
    said = refused(capsys, ["eval", "report", str(tmp_path / "run")])
    assert "answers-00001.jsonl, line 1" in said and told in said


def test_ids_and_texts_with_half_a_character_stop_nothing(tmp_path, capsys) -> None:
    """They come from names of files that were not UTF-8, and can neither be written nor tokenised as they are."""
    path = write_sample("mvbench", tmp_path)
    rows = json.loads(path.read_text())
    rows[0]["question"] = "What is \udcfc?"
    path.write_text(json.dumps(rows))
    base, processor = tiny_model("llava", image_size=64)
    for part in (base, processor):
        part.save_pretrained(tmp_path / "model")
    video = next(iter((tmp_path).rglob("*.mp4")), None)
    assert video is None  # the sample names one that is not there
    from autogaze_mllm.evaluation.benchmarks import BENCHMARKS

    (question,) = BENCHMARKS["mvbench"](tmp_path).questions()[:1]
    assert "What is \\udcfc?" in question.text and question.text.encode()
    write_clips(tmp_path / question.video.rpartition("/")[0], 1)
    shutil.move(tmp_path / question.video.rpartition("/")[0] / "000.mp4", tmp_path / question.video)
    options = ["--gaze", "random", "--frames", "2", "--max-new-tokens", "2"]
    report = evaluate(capsys, "mvbench", tmp_path, tmp_path / "run", *options, model=str(tmp_path / "model"))
    assert report["scores"]["n"] == len(lines_of(tmp_path / "run")) == len(rows)


@pytest.mark.parametrize("content", [b"[" * 10**6, b'[{"video": "\xff"}]', b"[{}, 3]", b'{"a": 1}'])
def test_a_data_set_that_is_no_list_of_objects_is_one_line(content, tmp_path, capsys) -> None:
    path = write_sample("mvbench", tmp_path)
    path.write_bytes(content)
    arguments = [
        "eval",
        "mvbench",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "run"),
        "--model",
        "scripted:right",
    ]
    assert str(path) in refused(capsys, arguments)


def test_a_killed_made_up_data_set_is_made_again(tmp_path) -> None:
    """And is then what it would have been; another folder's files are still never touched."""
    whole, target = ensure_made_up("mlvu", tmp_path / "whole"), tmp_path / "killed"
    if not (pid := os.fork()):
        ensure_made_up("mlvu", target)
        os._exit(0)
    while not list(target.rglob("*.mp4")):
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not (target / MARK).exists():  # it was killed in time
        (target / "mine.txt").write_text("stays")
        ensure_made_up("mlvu", target)
        assert (target / "mine.txt").read_text() == "stays"
    files = {str(path.relative_to(whole)) for path in whole.rglob("*.*") if path.is_file()}
    assert files <= {str(path.relative_to(target)) for path in target.rglob("*.*")}
    for name in files:
        assert (whole / name).read_bytes() == (target / name).read_bytes()


def twins(folder: Path, make: Callable[[], Any]) -> list[str]:
    """Two gaze models in folders of one name, as every training leaves its own."""
    for number in (1, 2):
        gaze = make()
        for parameter in gaze.parameters():
            parameter.data += 0.05 * (number - 1)
        gaze.save_pretrained(folder / f"b{number}/gaze")
    return [str(folder / f"b{number}/gaze") for number in (1, 2)]


def test_a_sweep_tells_models_of_one_name_apart(two_videos, tmp_path, capsys) -> None:
    base, processor = tiny_model("llava", image_size=64)
    for part in (base, processor):
        part.save_pretrained(tmp_path / "model")
    one, two = twins(tmp_path / "m$x_$", tiny_gaze)  # a folder's name that is no formula
    grid = (
        "--sweep",
        f"gaze={one},{two},random; ratio=0.2",
        "--frames",
        "2",
        "--limit",
        "2",
        "--loss",
        "0",
        "--gaze",
        one,
    )
    report = evaluate(capsys, "hlvid", two_videos, tmp_path / "run", *grid, model=str(tmp_path / "model"))
    assert [entry["gaze"] for entry in report["sweep"]] == ["b1/gaze", "b2/gaze", "random"]
    names = [entry["name"] for entry in report["sweep"]]
    assert names == ["gaze=b1-gaze_ratio=0.2", "gaze=b2-gaze_ratio=0.2", "gaze=random_ratio=0.2"]
    weights = set()
    for name in names[:2]:
        weights.add(
            json.loads((tmp_path / "run" / name / "run.json").read_text())["settings"]["seen"]["selector"]["weights"]
        )
    assert len(weights) == 2


def test_the_measure_of_selections_tells_models_of_one_name_apart(tmp_path, capsys) -> None:
    write_clips(tmp_path / "videos", 1)
    one, two = twins(tmp_path, small_gaze)
    options = ["--settings", "ratio_1.00", "--frames", "2", "--device", "cpu", "--out", tmp_path / "out"]
    assert run_script("evaluate_reconstruction", tmp_path / "videos", "--gaze", f"{one},{two},{one}", *options) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    rows = json.loads((tmp_path / "out/summary.json").read_text(), parse_constant=refuse)["summary"]
    assert [(row["selector"], row["clips"]) for row in rows] == [("b1/gaze", 1), ("b2/gaze", 1)]
    for name in ("b1-gaze", "b2-gaze"):
        assert (tmp_path / "out/plots" / name / "gaze_heatmap.png").is_file()
        assert len(list((tmp_path / "out/visualizations" / name).iterdir())) == 1
