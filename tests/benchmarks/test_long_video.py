"""benchmarks/long_video.py in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.paths import ROOT


@pytest.mark.slow
def test_memory_and_time_are_reported(tmp_path: Path) -> None:
    script, out = ROOT / "benchmarks" / "long_video.py", tmp_path / "long.json"
    words = ["--frames", "4", "--size", "640x480", "--video-folder", tmp_path, "--pure-chunks", "1", "--out", out]
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    (run,) = found["runs"]
    assert run["frames"] == 4 and 0 < run["kept_patches"] < run["patches_total"]
    assert run["peak_gib"] > run["patches_gib"] > 0 and run["wall_seconds"] > 0
    assert run["pure_seconds"].keys() == {"decode", "resize", "select"} and len(found["targets"]) == 3
