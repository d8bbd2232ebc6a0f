"""Questions about a planned video: what a sign says, which comes first, how many of some are shown.

Nothing in a question tells its answer: the options of "read" are two marks by two digits, so that each shares a glyph
with exactly two others, and every other code is drawn as the signs are, near to none that stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .plan import VideoPlan, draw_digit, draw_mark
from .signs import Sign, code_of

LETTERS = "ABCD"
INSTRUCTION = "Please answer with the letter of the correct answer."
FIRST = "Which of these signs comes first?"
HOW_MANY = "How many of these signs are shown: {}?"
LISTED = 3  # codes of a "how many"
ORDER_OF_KINDS = ("read", "count", "first", "read", "count", "first", "read", "read", "count", "first")
LEAST_SIGNS = 3  # with fewer, not every answer to "how many" is possible
TRIES = 50


@dataclass(frozen=True)
class Asked:
    """text: question, options and instruction, as HLVid has them in one. answer: the right letter. seen: what the
    answer rests on: a sign's code, or each code that was asked for with + where it is shown and - where it is not.
    option: the right one, without its letter."""

    kind: str
    text: str
    answer: str
    seen: str
    option: str


@dataclass(frozen=True)
class _Draft:
    """key: what it asks, whatever the order and the options that are not shown."""

    question: str
    right: str
    wrong: list[str]
    seen: str
    key: Hashable


def ask_about(plan: VideoPlan, count: int, letters: Sequence[str], rng: np.random.Generator) -> list[Asked]:
    """`count` different questions; letters: that of the right option of each. Where a kind has no further question,
    another "how many" is asked."""
    found: list[Asked] = []
    used: set[Hashable] = set()
    for number, letter in enumerate(letters[:count]):
        kind = ORDER_OF_KINDS[number % len(ORDER_OF_KINDS)]
        draft = _another(_MAKERS[kind], plan, used, rng) if kind == "read" or plan.shape.order else None
        if draft is None:
            kind = "count"
            draft = _another(_count, plan, used, rng) or _count(plan, rng)
        used.add(draft.key)
        options = [str(option) for option in rng.permutation(draft.wrong)]
        options.insert(LETTERS.index(letter), draft.right)
        lines = [f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True)]
        found.append(Asked(kind, "\n".join([draft.question, *lines, INSTRUCTION]), letter, draft.seen, draft.right))
    return found


_Maker = Callable[[VideoPlan, np.random.Generator], _Draft]


def _another(make: _Maker, plan: VideoPlan, used: set[Hashable], rng: np.random.Generator) -> _Draft | None:
    """One that is not told yet, if one is found."""
    drafts = (make(plan, rng) for _ in range(TRIES))
    return next((draft for draft in drafts if draft.key not in used), None)


def _read(plan: VideoPlan, rng: np.random.Generator) -> _Draft:
    """Both marks and both digits of the options stand on signs, if another sign shares none with this one."""
    sign = plan.signs[int(rng.integers(len(plan.signs)))].sign
    others = [shown.sign for shown in plan.signs if _apart(shown.sign, sign)]
    if others:
        other = others[int(rng.integers(len(others)))]
        mark, digit = other.mark, other.digit
    else:
        mark = next(drawn for drawn in iter(lambda: draw_mark(rng), "") if drawn != sign.mark)
        digit = next(drawn for drawn in iter(lambda: draw_digit(rng), "") if drawn != sign.digit)
    wrong = [code_of(sign.mark, digit), code_of(mark, sign.digit), code_of(mark, digit)]
    question = f"What does the {sign.colour} sign say?"
    return _Draft(question, sign.code, wrong, sign.code, question)


def _apart(first: Sign, second: Sign) -> bool:
    return first.mark != second.mark and first.digit != second.digit


def _first(plan: VideoPlan, rng: np.random.Generator) -> _Draft:
    """Of four signs; of three and a code that is not shown, where there are no more."""
    count = min(len(LETTERS), len(plan.signs))
    chosen = sorted(int(position) for position in rng.permutation(len(plan.signs))[:count])
    right, *later = (plan.codes[position] for position in chosen)
    wrong = list(later)
    while len(wrong) < len(LETTERS) - 1:
        wrong.append(unseen([*plan.codes, *wrong], rng))
    return _Draft(FIRST, right, wrong, right, ("first", frozenset((right, *later))))


def _count(plan: VideoPlan, rng: np.random.Generator) -> _Draft:
    """How many of three codes are shown. Of those that are not, half differ in one glyph from a sign that is shown but
    not listed, from one sign each."""
    shown = int(rng.integers(0, min(LISTED, len(plan.signs)) + 1))
    signs = [plan.signs[int(position)].sign for position in rng.permutation(len(plan.signs))]
    seen, rest = [sign.code for sign in signs[:shown]], signs[shown:]
    listed = list(seen)
    while len(listed) < LISTED:
        near = rest.pop() if rest and rng.random() < 0.5 else None
        listed.append(unseen([*plan.codes, *listed], rng, near))
    listed = [str(code) for code in rng.permutation(listed)]
    wrong = [str(number) for number in range(4) if number != shown]
    question = HOW_MANY.format(", ".join(listed))
    verdicts = " ".join(f"{code}{'+' if code in seen else '-'}" for code in listed)
    return _Draft(question, str(shown), wrong, verdicts, ("count", frozenset(listed)))


def unseen(taken: Sequence[str], rng: np.random.Generator, near: Sign | None = None) -> str:
    """A code that is not taken, drawn as those of signs are; near: it keeps one glyph of this sign."""
    while True:
        mark, digit = draw_mark(rng), draw_digit(rng)
        if near is not None:
            mark, digit = (near.mark, digit) if rng.random() < 0.5 else (mark, near.digit)
        if (code := code_of(mark, digit)) not in taken:
            return code


_MAKERS: dict[str, _Maker] = {"read": _read, "first": _first, "count": _count}


def balanced_letters(count: int, rng: np.random.Generator) -> list[str]:
    """Each letter as often as the others, to one."""
    letters = [LETTERS[number % len(LETTERS)] for number in range(count)]
    return [str(letter) for letter in rng.permutation(letters)]
