"""Two runs on the same questions, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.storage.json_diff import differences
from ..run_folder import RUN_FILE, Run, read_run
from ..scoring import RULES, compare
from .document import Table, to_markdown
from .published import check_settings
from .report import percent


def compare_runs(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Paired comparison by both rules, and the settings in which the runs differ.

    Raises InputError when they were made on different data.
    """
    runs: tuple[Run, Run] = (read_run(first), read_run(second))
    for run in runs:
        check_settings(run.settings, run.folder / RUN_FILE)
    for name in ("benchmark", "split", "data"):
        one, other = (run.settings[name] for run in runs)
        if one != other:
            raise InputError(f"{first} and {second} were made on other data: {name} is {one} and {other}")
    before, after = (list(run.answers().values()) for run in runs)
    return {
        "first": str(first),
        "second": str(second),
        "settings": [list(change) for change in differences(runs[0].settings, runs[1].settings)],
        **{rule: compare(before, after, rule) for rule in RULES},
    }


def table_of(result: dict[str, Any]) -> str:
    """As Markdown."""
    rows = []
    for rule in RULES:
        found = result[rule]
        rows += [
            (rule, result["first"], percent(found["first"])),
            ("", result["second"], percent(found["second"])),
            ("", "wrong, then right", str(found["gained"])),
            ("", "right, then wrong", str(found["lost"])),
            ("", "another letter chosen", str(found["changed_answer"])),
            ("", "questions in both / first only / second only", _counts(found)),
            ("", "McNemar's exact test, p", f"{found['p']:.4g}"),
        ]
    changes = [(name, before, now) for name, before, now in result["settings"]]
    blocks = [Table(("rule", "", "value"), rows), Table(("setting", result["first"], result["second"]), changes)]
    return to_markdown(f"{result['first']} and {result['second']}", blocks)


def _counts(found: dict[str, Any]) -> str:
    return f"{found['n']} / {found['only_in_first']} / {found['only_in_second']}"
