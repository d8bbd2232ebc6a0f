"""Benchmarks and fine-tuning take videos as `index` left them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autogaze_mllm.cli import _parser, main
from autogaze_mllm.commands.arguments.config_file import parse
from autogaze_mllm.commands.arguments.options import load_model

from ..helpers.eval_runs import command, lines_of, refused
from ..helpers.files.finetune_files import mixed_data
from ..helpers.index_runs import index, make_videos, tiny_base

GAZE = ["--gaze", "pixel-diff", "--frames", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("model"))


def test_a_benchmark_decodes_no_video_that_was_indexed(two_videos, model, tmp_path, capsys):
    out = tmp_path / "index"
    assert index(capsys, two_videos, out, "--encode", model, *GAZE)["videos"] == 2
    run = command("hlvid", two_videos, tmp_path / "run", "--index", str(out), "--json", model=str(model))
    assert main(run) == 0
    answers = lines_of(tmp_path / "run")
    assert len(answers) == 7 and not any({"decode", "gaze", "tower"} & answer["seconds"].keys() for answer in answers)
    assert {answer["frames"]["sampled"] for answer in answers} == {4}
    capsys.readouterr()
    assert "leave --index out" in refused(capsys, [*run, "--sweep", "ratio=0.1,0.2"])


def test_fine_tuning_gazes_at_nothing_that_was_indexed(model, tmp_path, capsys):
    data, out = mixed_data(tmp_path / "data"), tmp_path / "index"
    assert not index(capsys, data.parent, out, "--model", model, *GAZE)["failed"]
    options = ["finetune", "--data", str(data), "--model", str(model), "--cpu", "--json", "--dry-run"]
    options += ["--cache", str(tmp_path / "gazed"), "--index", str(out)]
    assert main(options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["videos"] > 1 and told["gazed"] == 0
    assert not list((tmp_path / "gazed").glob("*.safetensors"))
    assert main([*options, "--ratio", "0.3"]) == 2
    assert "settings.ratio: 0.75 -> 0.3" in capsys.readouterr().err.splitlines()[-1]
    assert "leave index out" in refused(capsys, [*options, "--train-gaze", "full"])


@pytest.mark.parametrize("verb", ["serve", "app"])
def test_what_serve_and_the_page_load_finds_what_was_indexed(verb, model, tmp_path, capsys):
    videos, out = make_videos(tmp_path / "videos", 1), tmp_path / "index"
    index(capsys, videos, out, "--encode", model, *GAZE)
    loaded = load_model(parse(_parser(), [verb, str(model), "--index", str(out)]))
    loaded.encode_video(videos / "0.mp4")
    assert loaded.stats["from_cache"] == 1 and loaded.settings.frames == 4
    with pytest.raises(SystemExit):  # which would not look there
        parse(_parser(), [verb, "--index", str(out), "--no-cache"])
