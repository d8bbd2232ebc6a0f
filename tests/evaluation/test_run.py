"""Runs of benchmarks through the command line: what is answered, scored, written and recorded."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from autogaze_mllm.cli import main
from autogaze_mllm.evaluation.benchmarks import BENCHMARKS
from autogaze_mllm.evaluation.benchmarks.synthetic import write_made_up

from ..helpers.eval_runs import command, evaluate, lines_of, refused
from ..helpers.paths import ROOT

SCRIPTS = ROOT / "benchmarks"


# -- every benchmark, end to end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(
    ("script", "share", "unread"), [("right", 1.0, 0.0), ("wrong", 0.0, 0.0), ("nonsense", 0.0, 1.0)]
)
def test_scripted_answers_score_what_they_must(name, script, share, unread, benchmark_data, tmp_path, capsys):
    more = ("--subtitles",) if BENCHMARKS[name].has_subtitles else ()
    report = evaluate(capsys, name, benchmark_data / name, tmp_path / "run", *more, model=f"scripted:{script}")
    asked = len(BENCHMARKS[name](benchmark_data / name).questions())
    assert report["scores"]["n"] == asked and report["scores"]["failed"] == 0
    for rule in ("official", "strict"):
        found = report["scores"][rule]
        assert found["score"]["value"] == found["micro"]["value"] == found["by_video"] == share
        assert found["unparsed"] == unread * asked
        assert sum(part["n"] for part in next(iter(found["categories"].values()), {}).values()) in (0, asked)
    assert {"report.json", "report.md", "report.html"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert "script looked up the answers" in " ".join(report["differences"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_has_its_script(name, benchmark_data, tmp_path, monkeypatch, capsys):
    """With one command, without data: it makes some up."""
    code = compile((SCRIPTS / f"{name}.py").read_text(), name, "exec")
    folder = ("--made-up", str(benchmark_data / name), "--out", str(tmp_path), "--model", "scripted:right")
    monkeypatch.setattr(sys, "argv", [name, *folder])
    with pytest.raises(SystemExit) as ended:
        exec(code, {"__name__": "__main__"})
    said = capsys.readouterr()
    assert ended.value.code == 0 and "The data are made up" in said.out
    assert "accuracy 100.0 %" in said.err  # the progress bar


def test_the_mean_over_tasks_is_what_mvbench_and_mlvu_report(benchmark_data, tmp_path, capsys):
    for name, over in (("mvbench", "task"), ("mlvu", "task_type")):
        report = evaluate(capsys, name, benchmark_data / name, tmp_path / name)
        assert report["mean_over"] == over
        assert len(report["scores"]["official"]["categories"][over]) == (20 if name == "mvbench" else 7)


def test_egoschema_full_set_becomes_a_file_to_submit(benchmark_data, tmp_path, capsys):
    report = evaluate(capsys, "egoschema", benchmark_data / "egoschema", tmp_path, "--split", "full")
    assert report["scores"]["n"] == 0 and report["scores"]["withheld"] == 4
    rows = (tmp_path / "submission.csv").read_text().splitlines()
    assert rows == ["q_uid,answer", *(f"video_{number:03},0" for number in range(4))]  # the script says A
    silent = tmp_path / "silent"
    evaluate(capsys, "egoschema", benchmark_data / "egoschema", silent, "--split", "full", model="scripted:nonsense")
    assert (silent / "submission.csv").read_text().splitlines()[1] == "video_000,-1"  # never one at random


# -- a model -----------------------------------------------------------------------------------------------------------


def test_a_model_sees_each_video_once_and_all_is_recorded(two_videos, tmp_path, capsys):
    report = evaluate(capsys, "hlvid", two_videos, tmp_path / "run", "--frames", "6", "--no-cache", model=None)
    answers = lines_of(tmp_path / "run")
    assert len(answers) == 7
    for stage in ("decode", "gaze", "tower"):  # once for each video, with its first question
        assert [answer["id"] for answer in answers if stage in answer["seconds"]] == ["q0000", "q0003"]
    for answer in answers:
        assert answer["seconds"]["llm"] > 0 and 0 < answer["tokens"]["new"] <= 16 and isinstance(answer["raw"], str)
        assert 0 < answer["patches"]["kept"] < answer["patches"]["total"] == 6 * 265
        assert answer["tokens"]["prompt"] > answer["tokens"]["visual"] >= answer["patches"]["kept"] / 4
        assert answer["frames"]["sampled"] == 6 and answer["frames"]["lost"] == 0
    # 10 frames in 2 s and 12 in 2.4 s, of which 6 are taken.
    assert [answers[0]["frames"]["fps"], answers[-1]["frames"]["fps"]] == [3.0, 2.5]
    first = {answer["video"]: answer for answer in reversed(answers)}.values()
    tokens = [answer["tokens"]["visual"] for answer in first]
    assert report["visual_tokens_per_video"] == {"mean": sum(tokens) / 2, "max": max(tokens)}
    assert report["patches"]["kept"] == sum(answer["patches"]["kept"] for answer in first)
    settings = report["settings"]
    assert settings["prompt_version"] == "1" and settings["seed"] == 0 and settings["max_new_tokens"] == 16
    assert settings["seen"]["video"]["frames"] == 6 and settings["seen"]["gaze"] == "pixel-diff"
    assert settings["seen"]["index_rule"] and settings["seen"]["loss_in_force"] == 0.05
    assert settings["seen"]["tower"]["scales"][-1] == [224, 224]
    assert settings["model"]["family"] == "VILA-style folders" and settings["model"]["decoding"] == "greedy"
    assert report["environment"]["packages"]["torch"]


def test_reports_show_published_numbers_and_say_what_differs(two_videos, tmp_path, capsys):
    report = evaluate(capsys, "hlvid", two_videos, tmp_path, "--frames", "6", "--limit", "5", model=None)
    assert (report["published"]["dense"], report["published"]["gazed"]) == (42.5, 52.6)
    said = " ".join(report["differences"])
    assert "The model is bundled; the published one is nvidia/NVILA-8B-HD-Video." in said
    assert "5 questions were asked (--limit 5); the published data have 268." in said
    assert "6; published: 128." in said and "picked by pixel-diff; published: nvidia/AutoGaze" in said
    assert "predicted loss" not in said  # of another task, which cannot be compared
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for text in ("52.6 %", "published: 128", "By category", "unparsed", "Accuracy against visual tokens", "seconds"):
        assert text in markdown and text in page
    assert page.count("data:image/png;base64,iVBOR") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched from elsewhere


def test_published_settings_differ_in_nothing():
    """A run of the published model with the published settings has nothing to confess."""
    from autogaze_mllm.evaluation.reports.published import differences_in_words
    from autogaze_mllm.gaze.settings import preset

    settings: dict[str, Any] = {
        "benchmark": "videomme",
        "split": "test",
        "subtitles": False,
        "made_up": False,
        "limit": None,
        "max_new_tokens": 16,
        "model": {"name": "nvidia/NVILA-8B-HD-Video"},
        "seen": {
            "gaze": "nvidia/AutoGaze",
            "selector": {"weights": "..."},
            "loss_in_force": 0.6,
            "video": preset("nvila-hd").to_dict(),
        },
    }
    assert differences_in_words(settings, 2700) == []
    settings["seen"]["loss_in_force"] = 0.7
    assert differences_in_words(settings, 2700) == ["A frame stops at the predicted loss 0.7; published: 0.6."]


# -- videos that fail --------------------------------------------------------------------------------------------------


def test_missing_and_unreadable_videos_count_as_wrong_and_are_listed(tmp_path, capsys):
    data, out = write_made_up("hlvid", tmp_path / "data"), tmp_path / "run"
    intact = (data / "videos" / "video_001.mp4").read_bytes()
    (data / "videos" / "video_001.mp4").unlink()
    (data / "videos" / "video_002.mp4").write_bytes(b"not a video")
    assert main(command("hlvid", data, out)) == 1
    said = capsys.readouterr()
    assert "1 of 4 videos are missing and will count as wrong" in said.err and "7 answers are failures" in said.err
    report = json.loads((out / "report.json").read_text())
    assert (report["scores"]["n"], report["scores"]["failed"]) == (14, 7)
    assert report["scores"]["official"]["score"]["value"] == 0.5
    assert report["scores"]["official"]["unparsed"] == 0  # a failure is not a reply without an answer
    failed = {failure["video"]: failure for failure in report["failures"]}
    assert failed.keys() == {"video_001.mp4", "video_002.mp4"} and failed["video_001.mp4"]["questions"] == 4
    assert "no such file" in failed["video_001.mp4"]["error"]
    assert "not a readable video" in failed["video_002.mp4"]["error"]
    assert "video_002.mp4" in (out / "report.md").read_text()
    # Going on does not try them again, unless asked to.
    (data / "videos" / "video_001.mp4").write_bytes(intact)
    assert main([*command("hlvid", data, out), "--resume"]) == 1
    assert json.loads((out / "report.json").read_text())["scores"]["failed"] == 7
    assert main([*command("hlvid", data, out), "--resume", "--retry-failed"]) == 1
    report = json.loads((out / "report.json").read_text())
    assert (report["scores"]["n"], report["scores"]["failed"]) == (14, 3)
    assert "--retry-failed goes with --resume" in refused_after(
        capsys, [*command("hlvid", data, out), "--retry-failed"]
    )


def refused_after(capsys, arguments: Sequence[str]) -> str:
    capsys.readouterr()
    return refused(capsys, arguments)
