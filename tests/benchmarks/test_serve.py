"""The load generator of the server, on a small scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import autogaze_mllm as am

ROOT = Path(am.__file__).resolve().parents[1]


@pytest.mark.slow
def test_it_measures_a_server_that_it_starts(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "serve.py"), "--requests", "3", "--clients", "1", "2"]
    command += ["--videos", "1", "--out", str(tmp_path / "out.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["requests_are"], row["clients"]) for row in rows] == [
        (kind, clients) for clients in (1, 2) for kind in ("new", "seen", "dense")
    ]
    assert all(row["requests_per_second"] > 0 and row["first_word_median"] <= row["whole_median"] for row in rows)
    assert len({row["pieces"] for row in rows if row["requests_are"] != "dense"}) == 1  # the same answers every time
