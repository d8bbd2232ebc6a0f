"""The tables of the manual are those of the results: `<!-- table: NAME -->` says which."""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import autogaze_mllm as am

ROOT = Path(am.__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table(name: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    found = [
        match[1]
        for page in (ROOT / "docs").glob("*.md")
        for match in re.finditer(rf"<!-- table: {name} -->\n\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"))
    ]
    assert len(found) == 1, name
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()[2:]]


def test_every_table_that_says_so_is_compared():
    named = {
        name
        for page in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"<!-- table: (\w+) -->", page.read_text(encoding="utf-8"))
    }
    assert named == {"gaze_speed", "signvid", "finetune_memory", "gaze_reconstruction"}


def test_gaze_speed():
    rows = json.loads((RESULTS / "gaze_speed_cpu.json").read_text())["rows"]
    expected = [
        [
            str(row["batch"]),
            row["ratio"],
            f"{row['seconds_per_clip']:.2f}",
            f"{row['share_of_matmul_rate']:.0%}",
            f"{row['peak_mib']:.0f}",
            f"{row['reference_seconds_per_clip']:.1f}",
        ]
        for row in rows
        if row["dtype"] == "fp32"
    ]
    assert table("gaze_speed") == expected
    assert all(row["ids_as_in_reference"] == 1 for row in rows if row["dtype"] == "fp32")


def test_signvid():
    looks = json.loads((RESULTS / "signvid_cpu.json").read_text())["looks"]
    expected = []
    for name in ("gaze", "pixel-diff", "random", "whole-448", "all"):
        look = looks[name]
        accuracy, kinds = look["accuracy"], look["kinds"]
        low, high = 100 * accuracy["low"], 100 * accuracy["high"]
        expected.append(
            [
                f"{100 * accuracy['value']:.1f} % ({low:.0f} to {high:.0f})",
                " / ".join(f"{100 * kinds[kind]['value']:.0f} %" for kind in ("read", "first", "count")),
                f"{100 * look['unparsed']:.0f} %",
                f"{look['tokens']:.0f}",
                f"{look['first']:.1f}",
                f"{look['further']:.2f}",
                f"{look['peak']:.2f}",
            ]
        )
    assert [row[1:] for row in table("signvid")] == expected


def test_gaze_reconstruction():
    expected = []
    for kind in ("generated", "real"):
        with (RESULTS / "gaze_reconstruction" / f"{kind}_summary.csv").open(newline="") as file:
            rows = {row["setting"]: row for row in csv.DictReader(file) if row["selector"] == "bundled"}
        for setting in ("task_0.20", "task_0.40", "ratio_0.05"):
            row = rows[setting]
            others = [f"{float(row[f'patches_over_{other}']):.2f}" for other in ("random", "greedy", "pixel_diff")]
            measured = row["measured_over_asked"]
            kept = f"{100 * float(row['ratio']):.1f} %"
            expected.append([kept, *others, f"{float(measured):.2f}" if measured else ""])
    assert [row[2:] for row in table("gaze_reconstruction")] == expected


def test_finetune_memory(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune_memory.py"])
    runpy.run_path(str(ROOT / "benchmarks" / "finetune_memory.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert table("finetune_memory") == [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
