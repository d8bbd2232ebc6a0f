"""Scores against numbers worked out elsewhere."""

from __future__ import annotations

import pytest

from autogaze_mllm.evaluation.answers import Answer
from autogaze_mllm.evaluation.scoring import Accuracy, compare, mean_of, score


def answers(marks: str, video: str = "v", kind: str = "k", start: int = 0) -> list[Answer]:
    """r: right, w: wrong, u: nothing read, f: the video failed."""
    letter = {"r": "A", "w": "B", "u": None, "f": None}
    return [
        Answer(
            str(start + number),
            video,
            "A",
            official=letter[mark],
            strict=letter[mark],
            error="gone" if mark == "f" else None,
            categories={"kind": kind},
        )
        for number, mark in enumerate(marks)
    ]


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, 857-872, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(correct, n, low, high):
    found = Accuracy.of([True] * correct + [False] * (n - correct))
    assert (found.n, found.correct) == (n, correct) and found.value == correct / n
    assert found.low == pytest.approx(low, abs=5e-5) and found.high == pytest.approx(high, abs=5e-5)


def test_nothing_is_no_accuracy():
    assert Accuracy.of([]).value is None and mean_of([]).value is None


def test_mean_counts_every_part_the_same():
    parts = [Accuracy.of([True] * 9 + [False]), Accuracy.of([False] * 100)]
    mean = mean_of(parts)
    assert mean.value == pytest.approx(0.45) and mean.n == 110
    # Square-and-add by hand, from the parts' own limits.
    assert mean.low == pytest.approx(0.45 - ((0.9 - parts[0].low) ** 2 + 0.0**2) ** 0.5 / 2)
    assert mean.high == pytest.approx(0.45 + ((parts[0].high - 0.9) ** 2 + parts[1].high ** 2) ** 0.5 / 2)
    one = Accuracy.of([True] * 3 + [False])
    assert (mean_of([one]).low, mean_of([one]).high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_failures_and_unread_replies_stay_in_n():
    found = score(answers("rrwuff"), None)
    assert found["n"] == 6 and found["failed"] == 2
    assert found["strict"]["score"]["value"] == 2 / 6 and found["strict"]["unparsed"] == 1


def test_categories_videos_and_the_mean_over_tasks():
    rows = answers("rrrr", "v1", "one") + answers("wwwwwr", "v2", "two", 10) + answers("rw", "v3", "two", 20)
    micro, macro = (score(rows, over)["official"] for over in (None, "kind"))
    assert micro["score"]["value"] == micro["micro"]["value"] == 6 / 12
    assert {name: (a["correct"], a["n"]) for name, a in micro["categories"]["kind"].items()} == {
        "one": (4, 4),
        "two": (2, 8),
    }
    assert macro["score"]["value"] == pytest.approx((1 + 2 / 8) / 2) and macro["micro"] == micro["micro"]
    assert macro["by_video"] == pytest.approx((1 + 1 / 6 + 1 / 2) / 3)


def test_withheld_answers_are_not_scored():
    rows = [*answers("rw"), Answer("x", "v", None, official="A", strict="A")]
    found = score(rows, None)
    assert (found["n"], found["withheld"], found["official"]["score"]["value"]) == (2, 1, 0.5)


def test_comparison_counts_changes_and_tests_them():
    #                     0123456789
    first, second = answers("rrrrwwwwwu"), answers("rrrwrrrrww")
    found = compare(first, second, "official")
    assert (found["both_right"], found["lost"], found["gained"], found["both_wrong"]) == (3, 1, 4, 2)
    assert found["changed_answer"] == 6  # also from nothing to a wrong letter
    assert found["p"] == pytest.approx(2 * (1 + 5) / 2**5)  # exact: 1 of 5 or fewer, both tails
    assert found["first"]["value"] == 0.4 and found["second"]["value"] == 0.7
    assert compare(first, first, "official")["p"] == 1.0
    part = compare(first, second[:4], "official")
    assert (part["n"], part["only_in_first"], part["only_in_second"]) == (4, 6, 0)
