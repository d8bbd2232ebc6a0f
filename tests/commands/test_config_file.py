"""`--config FILE` fills options, and what a run leaves behind repeats it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from autogaze_mllm.cli import _parser, main
from autogaze_mllm.commands.arguments.config_file import parse, write_config
from autogaze_mllm.commands.arguments.options import chosen_settings
from autogaze_mllm.gaze.settings import preset

from ..helpers.eval_runs import evaluate, refused
from ..helpers.files.finetune_files import mixed_data

COMMANDS = {
    "ask": ["clip.mp4", "what?", "--max-new-tokens", "3", "--no-cache", "--no-enlarge"],
    "gaze": ["clip.mp4", "--preset", "nvila-hd", "--thumbnail-loss", "0.25", "--gaze", "all"],
    "eval hlvid": ["--out", "run", "--made-up", "data", "--sweep", "gaze=random,all; ratio=0.1", "--limit", "2"],
    "finetune": ["--data", "a.json", "b.json", "--output", "o", "--tower", "off", "--llm-lr", "1e-05", "--packing"],
    "label": ["videos", "--out", "labels.json", "--loss", "0.3", "--task", "mosaic"],
    "train-gaze": ["videos", "--out", "o", "--strides", "1:4", "--precision", "no", "--top-k", "50", "--mirror"],
    "merge": ["tuned", "whole", "--dtype", "float16"],
}


def read(*words: str):
    return parse(_parser(), list(words))


def file_of(tmp_path: Path, text: str, name: str = "options.yaml") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


@pytest.mark.parametrize("verb", COMMANDS)
def test_what_is_written_gives_the_same_options(verb, tmp_path):
    typed = read(*verb.split(), *COMMANDS[verb])
    write_config(typed, tmp_path / "config.yaml")
    again = read(*verb.split(), "--config", str(tmp_path / "config.yaml"))
    assert {**vars(again), "config": None, "parser": None} == {**vars(typed), "config": None, "parser": None}
    (tmp_path / "config.json").write_text(json.dumps(typed.chosen), encoding="utf-8")
    assert read(*verb.split(), "--config", str(tmp_path / "config.json")).chosen == typed.chosen


def test_the_command_line_goes_before_wherever_the_file_stands(tmp_path):
    file = file_of(tmp_path, "frames: 8\nratio: 0.5\nenlarge: false\nvideo: a.mp4\n")
    for words in (["--config", file, "--frames", "32", "--enlarge"], ["--frames", "32", "--enlarge", "--config", file]):
        found = read("gaze", *words, "b.mp4")
        assert (found.frames, found.ratio, found.enlarge, found.video) == (32, 0.5, True, "b.mp4")
    assert read("gaze", "--config", file).video == "a.mp4"
    run = file_of(tmp_path, "data: there\nout: run\n", "run.yaml")
    found = read("eval", "mlvu", "--config", run, "--made-up", "here")  # of two that exclude each other
    assert (found.data, found.made_up) == (None, "here")


def test_a_file_can_say_the_ratio_of_every_frame_of_a_chunk(tmp_path):
    hd = preset("nvila-hd")
    file = file_of(tmp_path, f"preset: nvila-hd\nratio: {list(hd.ratio)}\n")
    assert chosen_settings(read("gaze", "clip.mp4", "--config", file)) == hd


def test_words_and_numbers_are_read_as_options_are(tmp_path):
    text = "videos: data\nout: run\nprecision: no\nstrides: 1:30\nlr: 1e-4\nsteps: 010\ntarget: 0.5\nbatch-size: 4\n"
    found = read("train-gaze", "--config", file_of(tmp_path, text))
    assert (found.precision, found.strides, found.lr, found.steps, found.target) == ("no", "1:30", 1e-4, 10, "0.5")
    assert found.batch_size == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("framse: 8\n", "'framse' is not an option of autogaze-mllm gaze; the nearest: frames"),
        ("frames: many\n", "frames must be a whole number, got 'many'"),
        ("frames: [1, 2]\n", "frames must be a whole number, got ['1', '2']"),
        ("frames: true\n", "frames must be a whole number, got True"),
        ("enlarge: 1\n", "enlarge must be true or false, got '1'"),
        ("frames: 0\n", "frames must be at least 1"),
        ("ratio: [0.5, 0.5]\n", "ratio has 2 entries"),
        ("- frames\n", "expected lines `OPTION: VALUE`"),
        ("frames: {\n", "not readable as yaml"),
    ],
)
def test_a_bad_file_gets_one_line(text, message, clip, tmp_path, capsys):
    assert message in refused(capsys, ["gaze", str(clip), "--config", file_of(tmp_path, text)])


def test_a_file_that_is_not_there_or_contradicts_itself(tmp_path, capsys):
    assert "cannot be read" in refused(capsys, ["gaze", "clip.mp4", "--config", str(tmp_path / "none.yaml")])
    file = file_of(tmp_path, "data: a\nmade_up: b\nout: c\n")
    assert "data and made_up do not go together" in refused(capsys, ["eval", "hlvid", "--config", file])
    file = file_of(tmp_path, "algorithm: magic\n")
    assert "algorithm must be one of ntp, grpo" in refused(capsys, ["train-gaze", "--config", file])


# -- runs leave the file that repeats them -----------------------------------------------------------------------------


def test_an_evaluation_is_repeated(benchmark_data, tmp_path, capsys):
    first = evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path / "one", "--limit", "3", "--frames", "4")
    file, other = tmp_path / "one" / "config.yaml", str(tmp_path / "two")
    assert "autogaze-mllm eval hlvid --config" in file.read_text().splitlines()[0]
    assert main(["eval", "hlvid", "--config", str(file), "--out", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == first["settings"]


def test_labels_and_a_training_of_gaze_are_repeated(clip, tmp_path, capsys):
    labels = tmp_path / "labels.json"
    more = ["--frames", "2", "--loss", "0.3", "--device", "cpu"]
    assert main(["label", str(clip), "--out", str(labels), *more]) == 0
    first = labels.read_bytes()
    labels.unlink()
    assert main(["label", "--config", str(tmp_path / "labels.config.yaml")]) == 0
    assert labels.read_bytes() == first
    run = tmp_path / "run"
    more = ["--labels", str(labels), "--frames", "2", "--steps", "1", "--batch-size", "1", "--device", "cpu"]
    assert main(["train-gaze", str(clip), "--out", str(run), *more]) == 0
    again = ["train-gaze", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    for name in ("settings.json", "gaze/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_a_finetuning_leaves_its_options(tmp_path, capsys):
    data = mixed_data(tmp_path / "data")
    words = ["finetune", "--data", str(data), "--gaze", "pixel-diff", "--frames", "4", "--cpu", "--max-steps", "1"]
    words += ["--workers", "0", "--cache", str(tmp_path / "gazed")]
    assert main([*words, "--output", str(tmp_path / "out"), "--json"]) == 0
    losses = json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert kept["frames"] == 4 and "device" not in kept and "no_cache" not in kept
    again = ["finetune", "--config", str(tmp_path / "out" / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == losses
