"""The conformance table of the manual has every family and every property, and says what was found."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import autogaze_mllm as am
from autogaze_mllm.mllm.families import OWN

from ..helpers.families.conformance import ALL, PROPERTIES, model_type_of

ROOT = Path(am.__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "conformance_table.py"


def test_the_manual_has_every_family_and_every_property():
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    assert head == ["family", *PROPERTIES]
    assert [row[0].split("`")[1] for row in rows] == ALL
    assert {family.model_type for family in OWN} == {model_type_of(name) for name in ALL}
    assert all(set(row[1:]) <= {"yes", ""} for row in rows)
    qwen = [row for row in rows if "qwen" in row[0]]
    assert len(qwen) == 6
    assert all(set(row[1:]) == {"yes"} for row in qwen)
    assert all(f"- **{key}**: {meaning}." in page for key, meaning in PROPERTIES.items())


def test_versions_are_put_together_by_what_holds_in_all_of_them():
    script = runpy.run_path(str(SCRIPT))
    one, other = ({name: dict.fromkeys(PROPERTIES, "yes") for name in ALL} for _ in range(2))
    one["llava"] |= {"all": "no", "part": ""}
    other["gemma4"] |= {"all": ""}
    found = script["together"](
        [{"transformers": ["5.17.0"], "cells": one}, {"transformers": ["5.23.0"], "cells": other}]
    )
    assert found["transformers"] == ["5.23.0", "5.17.0"]
    assert found["cells"]["llava"] == {**dict.fromkeys(PROPERTIES, "yes"), "all": "no", "part": ""}
    assert found["cells"]["gemma4"]["all"] == ""
    assert "| LLaVA (`llava`) | **no** |  | yes |" in script["table"](found)


@pytest.mark.slow
def test_the_script_says_what_the_suite_found(tmp_path):
    before = (ROOT / "docs" / "conformance.md").read_bytes()
    command = [sys.executable, str(SCRIPT), "--json", "found.json", "--", "-k", "test_a_wrong_count and llava_clip"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads((tmp_path / "found.json").read_text())["cells"]
    assert [(name, key) for name in ALL for key in PROPERTIES if cells[name][key]] == [("llava_clip", "counts")]
    assert (ROOT / "docs" / "conformance.md").read_bytes() == before
