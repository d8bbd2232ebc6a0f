"""Sweeps, comparisons of runs, reports written again, and the made-up data themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autogaze_mllm.cli import main
from autogaze_mllm.evaluation.benchmarks.synthetic import write_made_up

from ..helpers.eval_runs import command, evaluate, lines_of, refused, without_times


def test_a_sweep_decodes_once_and_plots_accuracy_against_patches(two_videos, tmp_path, monkeypatch, capsys):
    from autogaze_mllm.video.reader import VideoReader

    decoded: list[str] = []
    read = VideoReader.read
    monkeypatch.setattr(
        VideoReader, "read", lambda self, *a, **k: decoded.append(Path(self.name).name) or read(self, *a, **k)
    )
    grid = "gaze=pixel-diff,random,all; ratio=0.05,0.2"
    report = evaluate(capsys, "hlvid", two_videos, tmp_path / "run", "--sweep", grid, "--frames", "4", model=None)
    assert decoded == ["video_000.mp4", "video_001.mp4"]
    kept = {entry["name"]: entry["patches_kept"] for entry in report["sweep"]}
    assert list(kept) == [  # everything is everything, whatever the ratio
        "gaze=pixel-diff_ratio=0.05",
        "gaze=pixel-diff_ratio=0.2",
        "gaze=random_ratio=0.05",
        "gaze=random_ratio=0.2",
        "gaze=all",
    ]
    assert kept["gaze=all"] == 1 and kept["gaze=random_ratio=0.2"] == pytest.approx(0.2, abs=0.01)
    assert kept["gaze=pixel-diff_ratio=0.05"] <= kept["gaze=pixel-diff_ratio=0.2"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Accuracy against kept patches" in page and "data:image/png;base64," in page
    # A variant is a run like any other: it sees what a run of its own sees.
    alone = evaluate(
        capsys,
        "hlvid",
        two_videos,
        tmp_path / "alone",
        "--gaze",
        "random",
        "--ratio",
        "0.2",
        "--frames",
        "4",
        model=None,
    )
    variant = json.loads((tmp_path / "run" / "gaze=random_ratio=0.2" / "report.json").read_text())
    assert without_times(variant) == without_times(alone)
    raw = [[answer["raw"] for answer in lines_of(tmp_path / place)] for place in ("alone", "run/gaze=random_ratio=0.2")]
    assert raw[0] == raw[1]
    # Resumed, it asks what is missing and nothing else.
    path = tmp_path / "run" / "gaze=all" / "answers-00000.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(before[:5]))
    evaluate(capsys, "hlvid", two_videos, tmp_path / "run", "--sweep", grid, "--frames", "4", "--resume", model=None)
    assert decoded[-1] == "video_001.mp4" and len(decoded) == 2 + 2 + 1
    assert [json.loads(line)["raw"] for line in path.read_bytes().splitlines()] == [
        json.loads(line)["raw"] for line in before
    ]


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("", "nothing to try"),
        ("colour=red", "'colour=red' is not NAME=VALUE,...; names: gaze, ratio"),
        ("ratio", "'ratio' is not NAME=VALUE"),
        ("ratio=a,b", "ratio='a,b' is not a list of numbers"),
        ("ratio=0.1,0.1", "has an empty value, or one twice"),
        ("ratio=0.1; ratio=0.2", "ratio stands there twice"),
        ("ratio=2", "ratio must lie in (0, 1]"),
    ],
)
def test_a_bad_grid(grid, says, two_videos, tmp_path, capsys):
    assert says in refused(capsys, command("hlvid", two_videos, tmp_path, "--sweep", grid, model=None))


def test_a_sweep_over_a_gaze_model_that_was_not_named(two_videos, tmp_path, capsys):
    given = command("hlvid", two_videos, tmp_path, "--sweep", "gaze=autogaze", "--gaze", "random", model=None)
    assert "name the gaze model with --gaze" in refused(capsys, given)


def test_two_runs_are_compared_in_pairs(benchmark_data, tmp_path, capsys):
    for script in ("right", "wrong"):
        evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path / script, model=f"scripted:{script}")
    folders = [str(tmp_path / script) for script in ("wrong", "right")]
    assert main(["eval", "compare", *folders, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["official"]["gained"] == found["official"]["changed_answer"] == 14 and found["official"]["lost"] == 0
    assert found["official"]["p"] == pytest.approx(2 / 2**14)
    assert found["settings"] == [["model.name", "scripted:wrong", "scripted:right"]]
    assert main(["eval", "compare", *folders]) == 0
    assert "McNemar" in capsys.readouterr().out
    evaluate(capsys, "mlvu", benchmark_data / "mlvu", tmp_path / "mlvu")
    assert "made on other data" in refused(capsys, ["eval", "compare", folders[0], str(tmp_path / "mlvu")])
    assert "no run here" in refused(capsys, ["eval", "compare", folders[0], str(benchmark_data)])


def test_a_report_can_be_written_again_once_all_is_answered(benchmark_data, tmp_path, capsys):
    first = evaluate(capsys, "hlvid", benchmark_data / "hlvid", tmp_path)
    (tmp_path / "report.html").unlink()
    assert main(["eval", "report", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first and (tmp_path / "report.html").exists()
    path = tmp_path / "answers-00000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    assert "2 questions have no answer yet" in refused(capsys, ["eval", "report", str(tmp_path)])


def test_made_up_data_are_the_same_every_time_and_never_overwrite(tmp_path, capsys):
    one, two = (write_made_up("mlvu", tmp_path / name, videos=2) for name in ("one", "two"))
    for path in sorted(one.rglob("*.*")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    arguments = ["eval", "mlvu", "--out", str(tmp_path / "run"), "--model", "scripted:right", "--made-up"]
    assert "is not empty, and not a made-up data set" in refused(capsys, [*arguments, str(tmp_path / "mine")])
    assert main([*arguments, str(tmp_path / "fresh")]) == 0
    capsys.readouterr()
    arguments[1] = "hlvid"
    assert "holds made-up data for mlvu" in refused(capsys, [*arguments, str(tmp_path / "fresh")])


def test_a_sweep_with_a_gaze_model(two_videos, tmp_path, capsys):
    from autogaze_mllm.mllm.tiny import tiny_model

    from ..helpers.tiny_models import tiny_gaze

    base, processor = tiny_model("llava", image_size=64)
    for part in (base, processor):
        part.save_pretrained(tmp_path / "model")
    tiny_gaze().save_pretrained(tmp_path / "my gaze")
    grid = ("--gaze", str(tmp_path / "my gaze"), "--sweep", "gaze=autogaze,random; ratio=0.2", "--frames", "3")
    report = evaluate(
        capsys, "hlvid", two_videos, tmp_path / "run", *grid, "--loss", "0", model=str(tmp_path / "model")
    )
    assert [entry["name"] for entry in report["sweep"]] == ["gaze=autogaze_ratio=0.2", "gaze=random_ratio=0.2"]
    assert all(entry["patches_kept"] == pytest.approx(0.2, abs=0.01) for entry in report["sweep"])
    settings = json.loads((tmp_path / "run" / "gaze=autogaze_ratio=0.2" / "run.json").read_text())["settings"]
    assert settings["seen"]["gaze"] == str(tmp_path / "my gaze") and settings["seen"]["selector"]["weights"]
