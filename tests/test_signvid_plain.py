"""The benchmark that asks plainly, and the demo: real files, the bundled model, answers beside the truth."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import signvid_plain

DEMO = Path(signvid_plain.__file__).parents[1] / "scripts" / "demo.py"


def test_signs_are_read_through_gaze_and_not_when_shrunk(tmp_path, monkeypatch, capsys):
    told = ["--dev", "--videos", "1", "--looks", "pixel-diff,whole-448", "--data", str(tmp_path / "data")]
    monkeypatch.setattr(sys, "argv", ["signvid_plain.py", *told, "--out", str(tmp_path / "out" / "found.json")])
    assert signvid_plain.main() == 0
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert json.loads(capsys.readouterr().out) == found and found["split"] == "train, seed 1000"
    looks = found["looks"]
    assert looks["pixel-diff"]["signs read"]["n"] == looks["whole-448"]["signs read"]["n"] == 5
    assert looks["pixel-diff"]["signs read"]["correct"] >= 4 and looks["whole-448"]["signs read"]["correct"] <= 1
    assert looks["pixel-diff"]["visual_tokens"] < looks["whole-448"]["visual_tokens"] == 16 * 265  # 2 x 2 tiles


def test_an_unknown_look_is_refused_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["signvid_plain.py", "--looks", "glance"])
    assert signvid_plain.main() == 2
    known = "gaze, pixel-diff, random, whole-448, all"
    assert capsys.readouterr().err == f"signvid_plain: --looks: no 'glance'; known: {known}\n"


@pytest.mark.slow
def test_the_demo_reads_4k_and_draws_where_it_looked(tmp_path):
    command = [sys.executable, str(DEMO), str(tmp_path), "--no-dense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"answer: .* truth: ", done.stdout)) == 3
    assert "with gaze 3 of 3 answers are right" in done.stdout
    assert (tmp_path / "overlay.mp4").stat().st_size > 10_000
