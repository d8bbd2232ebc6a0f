"""benchmarks/latency.py, at its smallest."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import latency


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["latency.py", "--size", "tiny", "--device", "cpu", *arguments])
    latency.main()


def test_table_json_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "tiny.json"
    monkeypatch.setattr(latency, "PAPER", [(1, 224, 0.205), (3, 224, 0.181)])
    run(monkeypatch, "--repeats", "1", "--limit", "0.0001", "--batch", "16", "--out", str(out))
    stored = json.loads(out.read_text())
    one, three = stored["rows"]
    assert (one["fps"], three["fps"], one["dense_patches"], three["dense_patches"]) == (1, 3, 196, 588)
    assert one["gazed_patches"] == int(0.205 * 265)
    assert one["tower"]["speedup"] == pytest.approx(one["tower"]["dense"] / one["tower"]["gazed"])
    stages = one["milliseconds"]
    assert one["tower"]["gazed"] == pytest.approx(stages["gaze"] + stages["gather"] + stages["gazed tower"])
    assert three["mllm"] == {"dense": None, "gazed": three["mllm"]["gazed"], "speedup": None}, "left out, and said so"
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and "dense prefill: not run" in printed[2]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ask.json"
    run(monkeypatch, "--points", "0", "--ask", "2,4", "--out", str(out))
    rows = json.loads(out.read_text())["ask"]
    assert [row["frames"] for row in rows] == [2, 4]
    for row in rows:
        dense, gazes = row["dense"]["tokens"], (row["gaze model"]["tokens"], row["pixel-diff"]["tokens"])
        assert all(0.1 * dense < tokens < 0.6 * dense for tokens in gazes), "the budget decides, no stop rule"
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 1 TiB")],
)
def test_what_does_not_fit_is_printed_as_such(error: Exception) -> None:
    def call(number: int) -> None:
        raise error

    timing = latency.Clock(torch.device("cpu"), 3, 1.0).batches(call, 4)
    assert timing.seconds is None and str(timing) == "out of memory"


def test_what_takes_too_long_is_measured_in_part() -> None:
    calls: list[int] = []
    clock = latency.Clock(torch.device("cpu"), 3, 0.05)

    def slow(number: int) -> None:
        calls.append(number)
        time.sleep(0.03)

    timing = clock.batches(slow, 100)
    assert timing.scaled and len(calls) < 10
    assert timing.seconds is not None and 3 <= timing.seconds < 30, "100 calls of 0.03 s"
