"""A few damaged files of every kind, each time; `python tests/fuzz.py` tries as many as are wanted."""

from __future__ import annotations

import numpy as np
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


@pytest.mark.slow
def test_what_the_process_that_starts_it_took_does_not_count() -> None:
    taken = np.ones(150_000_000)  # 1.1 GiB
    report = fuzz("pictures", 3, memory=1.0)
    assert taken.all() and not report.faults and 0.1 < report.peak < 1
