"""What the tests of `eval` share: how it is run, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autogaze_mllm.cli import main


def command(name: str, data: Path, out: Path, *more: str, model: str | None = "scripted:right") -> list[str]:
    chosen = [] if model is None else ["--model", model]
    return ["eval", name, "--data", str(data), "--out", str(out), *chosen, *more]


def evaluate(capsys, *arguments: Any, code: int = 0, **options: Any) -> dict[str, Any]:
    """The report that the command prints."""
    assert main([*command(*arguments, **options), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """All complete lines of all answer files."""
    found = []
    for path in sorted(folder.glob("answers-*.jsonl")):
        found += [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return found


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "seconds"}


def refused(capsys, arguments: Sequence[str]) -> str:
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line
