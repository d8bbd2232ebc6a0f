"""The page for those who come from the published code: every place and every test that it names exists."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import autogaze_mllm as am
from autogaze_mllm import published
from autogaze_mllm.cli import main

from .helpers.paths import ROOT

PAGE = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
LEFT_OUT = "left out: "


@dataclass(frozen=True)
class Row:
    feature: str
    here: str
    shown: str


def rows() -> list[Row]:
    """Rows of the tables of features."""
    found, inside = [], False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| feature |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|--"):
            assert len(cells) == 3 and all(cells), line
            found.append(Row(*cells))
    return found


ROWS = rows()


def test_there_is_a_row_for_every_feature() -> None:
    assert len(ROWS) >= 100
    assert len({row.feature for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.here.startswith(LEFT_OUT) == (row.shown == "-"), row
        assert not row.here.startswith(LEFT_OUT) or len(row.here) > len(LEFT_OUT) + 20, row


@cache
def options_of(command: str) -> set[str]:
    """The options of a verb, or of a script."""
    if command.endswith((".py", ".sh")):
        text = (ROOT / command).read_text(encoding="utf-8")
        for module in re.findall(r"^from autogaze_mllm\.commands\.arguments\.(\w+) import", text, re.MULTILINE):
            shared = ROOT / f"autogaze_mllm/commands/arguments/{module}.py"
            text += shared.read_text(encoding="utf-8")
        return set(re.findall(r"--[a-z0-9][\w-]*", text))
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    return set(re.findall(r"--[a-z0-9][\w-]*", text.getvalue()))


def is_there(place: str) -> bool:
    """Whether a name of the package, a file, or a command with its options exists."""
    words = place.split()
    if re.fullmatch(r"(am|published)(\.\w+)+", place):
        value: Any = {"am": am, "published": published}[place.partition(".")[0]]
        for name in place.split(".")[1:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    if words[0] == "autogaze-mllm":
        verb = " ".join(word for word in words[1:] if not word.startswith("--"))
        return {word for word in words if word.startswith("--")} <= options_of(verb)
    if re.fullmatch(r"[\w./-]+\.(py|md|sh|json|txt|yaml)", words[0]):
        here = any((folder / words[0]).is_file() for folder in (ROOT, ROOT / "autogaze_mllm"))
        return here and (len(words) == 1 or set(words[1:]) <= options_of(words[0]))
    return False


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.feature)
def test_the_place_is_there(row: Row) -> None:
    places = re.findall(r"`([^`]+)`", row.here)
    assert row.here.startswith(LEFT_OUT) or places
    assert all(is_there(place) for place in places), places


@cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_tests_are_there() -> None:
    for row in ROWS:
        if row.shown != "-":
            named = re.findall(r"`([\w/]+\.py)` `(\w+)`", row.shown)
            assert named, row
            for file, name in named:
                assert name in names_in(ROOT / "tests" / file), (row.feature, file, name)


def test_a_place_that_is_not_there_is_found_out() -> None:
    for wrong in (
        "am.Nothing",
        "published.AutoGaze.gaze",
        "scripts/nothing.py",
        "autogaze-mllm label --nothing",
        "why",
    ):
        assert not is_there(wrong)


def test_names_beside_the_published_ones_are_there() -> None:
    """In the table of names, too: classes of ours, and options of train-gaze."""
    table = PAGE.partition("## Names side by side")[2].partition("## What differs")[0]
    names = re.findall(r"`((?:am|published)\.[\w.]+)", table)
    assert len(names) >= 10 and all(is_there(name.rstrip(".")) for name in names)
    ours = [line.split(" | ")[1] for line in table.splitlines() if " | " in line]
    options = {word for text in ours for word in re.findall(r"--[\w-]+", text)} - {"--out"}
    assert len(options) >= 15 and options <= options_of("train-gaze") | options_of("scripts/evaluate_reconstruction.py")
