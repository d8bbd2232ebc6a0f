"""The demo: real files, the bundled model, answers beside the truth."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ..helpers.paths import ROOT

DEMO = ROOT / "scripts" / "demo.py"


@pytest.mark.slow
def test_the_demo_reads_4k_and_draws_where_it_looked(tmp_path):
    command = [sys.executable, str(DEMO), str(tmp_path), "--no-dense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"answer: .* truth: ", done.stdout)) == 3
    assert "with gaze 3 of 3 answers are right" in done.stdout
    assert (tmp_path / "overlay.mp4").stat().st_size > 10_000
