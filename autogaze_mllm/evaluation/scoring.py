"""Scores: accuracies with n and a 95 % interval, never a number alone.

A question whose video could not be shown, or whose reply names no option, is wrong and stays in n. Questions whose
answers are withheld are not scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .answers import Answer

RULES = ("official", "strict")


@dataclass(frozen=True)
class Accuracy:
    """Of n, `correct` are right. value, low and high: share and its 95 % interval in [0, 1]; None for n = 0."""

    n: int
    correct: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, right: Iterable[bool]) -> Accuracy:
        """With the Wilson score interval (1927)."""
        from scipy.stats import binomtest

        marks = list(right)
        n, correct = len(marks), sum(marks)
        if not n:
            return cls(0, 0, None, None, None)
        interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
        return cls(n, correct, correct / n, float(interval.low), float(interval.high))


def mean_of(parts: Sequence[Accuracy]) -> Accuracy:
    """Mean of independent accuracies, each counting the same whatever its n.

    The interval combines the parts' Wilson limits by the square-and-add method (Newcombe 1998; Zou and Donner 2008).
    """
    known = [part for part in parts if part.value is not None]
    if not known:
        return Accuracy(0, 0, None, None, None)
    value = sum(_share(part.value) for part in known) / len(known)
    below = math.sqrt(sum((_share(part.value) - _share(part.low)) ** 2 for part in known)) / len(known)
    above = math.sqrt(sum((_share(part.high) - _share(part.value)) ** 2 for part in known)) / len(known)
    n, correct = sum(part.n for part in known), sum(part.correct for part in known)
    return Accuracy(n, correct, value, max(value - below, 0.0), min(value + above, 1.0))


def _share(value: float | None) -> float:
    assert value is not None  # n > 0
    return value


def right_by(rule: str) -> Callable[[Answer], bool]:
    """Whether an answer is right by the "official" or the "strict" rule."""
    return lambda answer: getattr(answer, rule) is not None and getattr(answer, rule) == answer.answer


def grouped(answers: Iterable[Answer], key: Callable[[Answer], str]) -> dict[str, list[Answer]]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return groups


def score(answers: Sequence[Answer], mean_over: str | None) -> dict[str, Any]:
    """All scores of a run, by both rules.

    mean_over: the category whose values' accuracies are averaged to the benchmark's score; None: all questions count
    the same. by_video: every video counts the same; its questions are no independent draws, so it has no interval.
    """
    scored = [answer for answer in answers if answer.answer is not None]
    names = list(dict.fromkeys(name for answer in scored for name in answer.categories))
    result: dict[str, Any] = {
        "n": len(scored),
        "withheld": len(answers) - len(scored),
        "failed": sum(answer.error is not None for answer in scored),
        "videos": len({answer.video for answer in scored}),
    }
    for rule in RULES:
        right = right_by(rule)
        all_ = Accuracy.of(map(right, scored))
        categories = {
            name: {
                value: Accuracy.of(map(right, group))
                for value, group in sorted(grouped(scored, lambda answer, name=name: answer.categories[name]).items())  # type: ignore[misc]
            }
            for name in names
        }
        videos = [Accuracy.of(map(right, group)) for group in grouped(scored, lambda answer: answer.video).values()]
        headline = all_ if mean_over is None else mean_of(list(categories.get(mean_over, {}).values()))
        result[rule] = {
            "score": asdict(headline),
            "micro": asdict(all_),
            "by_video": mean_of(videos).value,
            "unparsed": sum(getattr(answer, rule) is None and answer.error is None for answer in scored),
            "categories": {name: {v: asdict(a) for v, a in values.items()} for name, values in categories.items()},
        }
    return result


def compare(first: Sequence[Answer], second: Sequence[Answer], rule: str) -> dict[str, Any]:
    """Paired comparison over the questions that both runs scored.

    gained: wrong in the first and right in the second; lost: the other way. p: McNemar's exact two-sided test, the
    binomial test of the questions that changed.
    """
    from scipy.stats import binomtest

    right = right_by(rule)
    before = {answer.id: answer for answer in first if answer.answer is not None}
    after = {answer.id: answer for answer in second if answer.answer is not None}
    shared = [name for name in before if name in after]
    pairs = [(right(before[name]), right(after[name])) for name in shared]
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    changed = sum(getattr(before[name], rule) != getattr(after[name], rule) for name in shared)
    return {
        "n": len(shared),
        "only_in_first": len(before) - len(shared),
        "only_in_second": len(after) - len(shared),
        "first": asdict(Accuracy.of(a for a, _ in pairs)),
        "second": asdict(Accuracy.of(b for _, b in pairs)),
        "both_right": pairs.count((True, True)),
        "both_wrong": pairs.count((False, False)),
        "gained": gained,
        "lost": lost,
        "changed_answer": changed,
        "p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }
