"""The programs in examples/ and the cells of its notebook run, in this process, without a download."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import matplotlib
import pytest

import autogaze_mllm as am

ROOT = Path(am.__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def signs(tmp_path_factory) -> Path:
    """Two SignVid videos, as evaluate.py and the notebook would generate them."""
    folder = tmp_path_factory.mktemp("examples") / "signvid"
    small = runpy.run_path(str(EXAMPLES / "evaluate.py"))["SMALL"]
    script(ROOT / "scripts" / "make_signvid.py", folder, *small)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def script(path: Path, *arguments: str | Path) -> None:
    """Runs a program as `python path arguments`; fails unless it ends well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            assert not end.code


def test_gaze_a_video(clip, tmp_path, capsys):
    out, save = tmp_path / "overlay.mp4", tmp_path / "clip.gazed.safetensors"
    arguments = ["--gaze", "pixel-diff", "--frames", "6", "--out", out, "--save", save]
    script(EXAMPLES / "gaze_a_video.py", clip, *arguments)
    printed = capsys.readouterr().out
    gazed = am.GazedVideo.load(save)
    assert printed.count(" patches  #") == 6
    assert f"{len(gazed)} of {gazed.total_patches} patches kept" in printed and out.stat().st_size > 1000


def test_ask(signs, capsys):
    video = signs / "videos" / "00000.mp4"
    script(EXAMPLES / "ask.py", video, "What do the signs say, by colour?", "What do the signs say, in order?")
    printed = capsys.readouterr().out
    assert "visual tokens after" in printed and printed.count("?\n  ") == 2


def test_wrap_your_own_model(clip, capsys):
    script(EXAMPLES / "wrap_your_own_model.py", clip)
    printed = capsys.readouterr().out
    assert "the same logits: True" in printed and "the same object: True" in printed


def test_finetune_100_videos(clip, tmp_path, capsys):
    turns = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "a ball"}]
    (tmp_path / "videos.jsonl").write_text(json.dumps({"video": str(clip), "conversations": turns}) + "\n")
    options = ["--cpu", "--max-steps", "1", "--workers", "0", "--frames", "2"]
    script(EXAMPLES / "finetune_100_videos.py", "videos.jsonl", "mine", *options)
    printed = capsys.readouterr().out
    steps = [line.split()[2] for line in printed.splitlines() if line.startswith("$ autogaze-mllm")]
    assert steps == ["finetune", "finetune", "finetune", "merge", "ask"]
    assert "0 faults" in printed and "memory, GiB" in printed and "reply" in printed
    assert (tmp_path / "mine" / "merged" / "config.json").is_file()


def test_evaluate(signs, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "signvid").symlink_to(signs)
    script(EXAMPLES / "evaluate.py", "--out", "runs")
    assert "n = 6" in capsys.readouterr().out
    for run in ("pixel-diff", "random"):
        assert json.loads((tmp_path / "runs" / run / "report.json").read_text())["scores"]["n"] == 6


def test_the_notebook(signs, tmp_path, monkeypatch, capsys):
    """As a kernel runs it: cell after cell, in one namespace, anywhere below the repository."""
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "tour_data").symlink_to(signs)
    matplotlib.use("agg")
    names: dict[str, object] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not kept in the repository"
            exec(compile("".join(cell["source"]), f"tour.ipynb, cell {number}", "exec"), names)
    assert "visual tokens" in capsys.readouterr().out
    matplotlib.pyplot.close("all")


def test_every_example_is_run_here():
    here = Path(__file__).read_text(encoding="utf-8")
    assert all(path.name in here for path in EXAMPLES.iterdir() if path.is_file())
