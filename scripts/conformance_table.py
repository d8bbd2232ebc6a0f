"""The conformance table of the manual: which property was found to hold for which family, by running the suite.

python scripts/conformance_table.py                      runs tests/mllm/conformance, writes the table into the manual
python scripts/conformance_table.py --json found.json    writes what was found there, and leaves the manual as it is
python scripts/conformance_table.py --also found.json    as the first; a cell then says what holds in both

found.json may come from an environment with another version of transformers. Exit code 1 where anything fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from autogaze_mllm.cli import program_parser, run_program

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from autogaze_mllm.mllm.families import FAMILIES  # noqa: E402
from tests.helpers.families.conformance import ALL, PROPERTIES, model_type_of  # noqa: E402

SUITE = ROOT / "tests" / "mllm" / "conformance"
PAGE = ROOT / "docs" / "conformance.md"
BEGIN, END = "<!-- conformance table -->\n", "<!-- end of the conformance table -->\n"


class Recorder:
    """A plugin of pytest. outcomes: of each (family, property), the outcomes of its tests."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], list[str]] = {}
        self._cells: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            mark = item.get_closest_marker("conformance")
            if mark is not None:
                self._cells[item.nodeid] = (item.callspec.params["name"], mark.args[0])

    def pytest_runtest_logreport(self, report: Any) -> None:
        cell = self._cells.get(report.nodeid)
        if cell is not None and (report.when == "call" or report.outcome != "passed"):
            self.outcomes.setdefault(cell, []).append(report.outcome)


def found_by_running(options: list[str]) -> dict[str, Any]:
    """{"transformers": [version], "cells": {family: {property: "yes", "no" or ""}}}."""
    recorder = Recorder()
    pytest.main([str(SUITE), "-q", "-p", "no:cacheprovider", *options], plugins=[recorder])

    def cell(name: str, key: str) -> str:
        outcomes = recorder.outcomes.get((name, key), [])
        return "no" if "failed" in outcomes else "yes" if "passed" in outcomes else ""

    cells = {name: {key: cell(name, key) for key in PROPERTIES} for name in ALL}
    return {"transformers": [transformers.__version__], "cells": cells}


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What holds in all of them."""

    def cell(name: str, key: str) -> str:
        said = {result["cells"].get(name, {}).get(key, "") for result in results}
        return "no" if "no" in said else "yes" if said == {"yes"} else ""

    versions = sorted({version for result in results for version in result["transformers"]}, reverse=True)
    cells = {name: {key: cell(name, key) for key in PROPERTIES} for name in ALL}
    return {"transformers": versions, "cells": cells}


def table(result: dict[str, Any]) -> str:
    shown = {"yes": "yes", "no": "**no**", "": ""}
    lines = [f"transformers {' and '.join(result['transformers'])}:", ""]
    lines.append("| family | " + " | ".join(PROPERTIES) + " |")
    lines.append("|---|" + "---|" * len(PROPERTIES))
    for name, cells in sorted(result["cells"].items(), key=lambda row: ALL.index(row[0])):
        title = FAMILIES[model_type_of(name)].title
        lines.append(f"| {title} (`{name}`) | " + " | ".join(shown[cells[key]] for key in PROPERTIES) + " |")
    legend = [f"- **{key}**: {meaning}." for key, meaning in PROPERTIES.items()]
    return "\n".join([*lines, "", *legend]) + "\n"


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, not into the manual")
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="FILE", help="what other versions found")
    parser.add_argument("options", nargs="*", help="options of pytest, after --")
    return run_program(parser, write_table)


def write_table(arguments: argparse.Namespace) -> int:
    found = found_by_running(arguments.options)
    result = together([found, *(json.loads(path.read_text()) for path in arguments.also)])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    else:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{after}", encoding="utf-8")
    failed = [f"{name}: {key}" for name, cells in result["cells"].items() for key in cells if cells[key] == "no"]
    print("\n".join(failed) if failed else f"{len(result['cells'])} families, {len(PROPERTIES)} properties: none fails")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
