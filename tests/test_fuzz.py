"""A few damaged files of every kind, each time; `python tests/fuzz.py` tries as many as are wanted."""

from __future__ import annotations

import pytest

from .fuzz import KINDS, REFUSED, RESULT, fuzz

SLOW = ("videomaes",)
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in KINDS]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_give_a_result_or_a_line(name: str) -> None:
    report = fuzz(name, 60, seconds=60)
    assert not report.faults, "\n".join(report.faults)
    assert report.outcomes[RESULT] + report.outcomes[REFUSED] == 60
    assert report.outcomes[RESULT] and report.outcomes[REFUSED] > 5  # the damage was worth its name


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "reason"), [({"memory": 0.001}, "takes "), ({"seconds": 1e-9}, "hangs")])
def test_limits_are_kept(limit: dict[str, float], reason: str) -> None:
    faults = fuzz("pictures", 3, **limit).faults  # type: ignore[arg-type]
    assert faults and all(reason in fault for fault in faults)
