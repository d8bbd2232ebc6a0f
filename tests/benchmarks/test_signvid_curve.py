"""benchmarks/signvid_curve.py: every way of looking in one process, and a figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.evaluation.benchmarks.hlvid import HLVid
from autogaze_mllm.gaze.settings import VideoSettings

from ..helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import signvid_curve as curve


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("curve")
    command = [sys.executable, ROOT / "benchmarks/signvid_curve.py", "--quick", "--out", out, "--workers", "1"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_seconds_can_be_measured_before_anything_else(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/signvid_curve.py", "--quick", "--out", tmp_path, "--workers", "1"]
    command += ["--seconds", "1", "--looks", "pixel-diff,gaze", "--conditions", "clean"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "signvid_curve.json").read_text())
    looks = result["seconds"]["clean"]["looks"]
    assert set(looks) == set(result["looks"]) and min(row["first"] for row in looks.values()) > 0
    done = subprocess.run(
        [*map(str, command[:-3]), "random", "--conditions", "clean"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    added = json.loads((tmp_path / "signvid_curve.json").read_text())
    assert added["seconds"]["clean"]["looks"].keys() == {*looks, *(f"random {budget}" for budget in curve.BUDGETS)}
    assert all(added["seconds"]["clean"]["looks"][name] == row for name, row in looks.items())


@pytest.mark.slow
def test_every_look_is_measured_as_ask_would_answer(written):
    result = json.loads((written / "signvid_curve.json").read_text())
    assert (written / "signvid_curve.png").read_bytes().startswith(b"\x89PNG")
    assert set(result["conditions"]) == {"clean", "noisy"}
    for rows in result["conditions"].values():
        assert set(rows) == set(result["looks"]) and len(rows) == 19
        assert {row["accuracy"]["n"] for row in rows.values()} == {6}
        for name in ("gaze", "greedy"):
            assert rows[f"{name} 0.15"]["tokens"] <= rows["random 0.15"]["tokens"] < 0.2 * rows["all"]["tokens"]
            few = [f"{name} gain {gain:g}" for gain in curve.GAINS]
            spent = [rows[look]["tokens"] for look in (f"{name} 0.15", *few)]
            assert spent == sorted(spent, reverse=True) and spent[2] < 0.5 * spent[0]
    data = written / "data/clean-448"
    settings = {**VideoSettings().to_dict(), "max_tiles": 4, "ratio": 0.15}  # the bundled model has some of its own
    model = am.load(cache=False, gaze="pixel-diff", **settings)
    benchmark = HLVid(data)
    right, tokens = 0, set()
    for question in benchmark.questions():
        seen = model.encode_video(data / "videos" / question.video)
        tokens.add(seen.tokens)
        reply = model.ask(seen, question.text, max_new_tokens=curve.MOST)
        right += curve.said(reply, question.options) == question.answer
    row = result["conditions"]["clean"]["pixel-diff 0.15"]
    assert row["accuracy"]["correct"] == right and row["tokens"] == sum(tokens) / len(tokens)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("U7", "B"),
        ("U7 (C)", "B"),
        ("U7 (", "B"),
        ("right 9 (A)", "C"),
        ("U8 (B)", None),
        ("B", None),
        ("", None),
        ("K7+ L3- right 2+ (A)", "D"),
        ("K7+ L3- right 2- 2 (A)", "D"),
        ("K7+ L3- right 2+ 3 (D)", None),
        ("K7- L3- M2- (D)", None),
    ],
)
def test_what_a_reply_names_in_words_counts(reply, letter):
    assert curve.said(reply, ("N8", "U7", "right 9", "2")) == letter


def test_looks_are_joined_as_they_are_told_apart():
    names = ["all", "gaze 0.15", "gaze gain 0.001", "pixel-diff 0.15", "whole-448", "whole-224"]
    joined = curve.series_of(names)
    assert joined == {
        "every patch": ["all"],
        "gaze": ["gaze 0.15", "gaze gain 0.001"],
        "pixel-diff": ["pixel-diff 0.15"],
        "the frame at 224 and 448 pixels": ["whole-448", "whole-224"],
    }


def test_weights_of_another_llm_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"model.norm.weight": torch.ones(192)}, tmp_path / "llm.safetensors")
    options = curve.parser().parse_args(["--out", str(tmp_path), "--llm", str(tmp_path / "llm.safetensors")])
    with pytest.raises(InputError, match="the weights do not fit this model's LLM: missing: "):
        curve.load(options)


@pytest.mark.parametrize(
    ("argument", "value", "line"),
    [
        ("--budgets", "0.1,2", "shares lie between 0 and 1"),
        ("--gains", "0.1,0", "gains lie above 0"),
        ("--conditions", "foggy", "no 'foggy'; known: clean, noisy"),
    ],
)
def test_what_is_not_known_is_refused_in_a_line(argument, value, line, capsys):
    with pytest.raises(SystemExit) as caught:
        curve.parser().parse_args(["--out", "nowhere", argument, value])
    assert caught.value.code == 2 and line in capsys.readouterr().err
