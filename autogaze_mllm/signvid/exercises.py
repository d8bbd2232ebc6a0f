"""SignVid without pictures: what a video shows, frame by frame in words, and the questions of the benchmark about it.

A text is thousands of times as cheap as a video. Matching an option to its letter, counting and telling what came first
are learnt on these; what is left to learn from videos is to find the same in visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .conversations import BY_SIGN, PROMPT, listing, plainly, reply
from .plan import VideoPlan, VideoShape, draw_digit, draw_mark, plan_video
from .questions import FIRST, HOW_MANY, INSTRUCTION, LETTERS, LISTED, Asked, ask_about, balanced_letters, unseen
from .signs import COLOURS, code_of

NOTHING = " none"
FRAMES, SIGNS = (6, 20), (3, 6)  # of a video in words: fewest and most
KINDS_OF_CHOICE = {"count": 0.15, "read": 0.2, "mark": 0.15, "glyph": 0.2, "first": 0.3}  # shares
BARE, INSTRUCTED = 0.6, 0.4  # shares of short choices without a question, and with the instruction

Turn = tuple[str, str]  # question, answer


def plan_exercise(seed: int, number: int) -> VideoPlan:
    """A short video of the train split, which nobody films."""
    rng = np.random.default_rng([seed, number, 7])
    frames, signs = (int(rng.integers(low, high + 1)) for low, high in (FRAMES, SIGNS))
    return plan_video(VideoShape(448, 448, frames, signs=signs), "train", seed, number)


def in_words(plan: VideoPlan, rng: np.random.Generator) -> str:
    """The signs of every frame, a line for each frame, in any order within it."""
    lines = []
    for time in range(plan.shape.frames):
        there = [shown.sign for shown in plan.signs if shown.start <= time < shown.end]
        words = [f" {there[int(n)].colour} {there[int(n)].code}" for n in rng.permutation(len(there))]
        lines.append(",".join(words) or NOTHING)
    return "\n".join(lines)


def ask(plan: VideoPlan, count: int, rng: np.random.Generator) -> list[Asked]:
    """`count` questions of the benchmark's."""
    return ask_about(plan, count, balanced_letters(count, rng), rng)


def turns_of(asked: Sequence[Asked]) -> list[Turn]:
    return [(PROMPT.format(one.text), reply(one)) for one in asked]


def some_turns(plan: VideoPlan, count: int, rng: np.random.Generator) -> list[Turn]:
    """`count` turns in any order: one that asks for all signs, one that asks for a sign without options, and questions
    of the benchmark's."""
    plain = plainly(plan)
    listed = listing(plan)
    chosen = [listed[int(rng.integers(len(listed)))], plain[int(rng.integers(len(plain)))]][:count]
    turns = chosen + turns_of(ask(plan, count - len(chosen), rng))
    return [turns[int(n)] for n in rng.permutation(len(turns))]


@dataclass(frozen=True)
class Choice:
    """A question with four options, and what would be said for each of them; no video decides which is right. bare: the
    options alone, with or without a part of what the benchmark writes around them."""

    kind: str
    question: str
    said: tuple[str, ...]
    bare: str


def choice(rng: np.random.Generator) -> Choice:
    """Options as the benchmark's, of codes drawn freely. "read": two marks by two digits; "mark": one digit alone, so
    that the mark decides; "glyph": marks alone, which is where finding an option begins; "count": the numbers, and of
    three codes so many with +."""
    kind = str(rng.choice(list(KINDS_OF_CHOICE), p=list(KINDS_OF_CHOICE.values())))
    options = _options(kind, rng)
    said = tuple(_verdicts(int(option), rng) for option in options) if kind == "count" else tuple(options)
    asked = {"count": HOW_MANY.format(", ".join(_codes(LISTED, rng))), "first": FIRST}
    question = asked.get(kind) or BY_SIGN.format(rng.choice(list(COLOURS)))
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    bare = ["" if rng.random() < BARE else question, *lines, INSTRUCTION if rng.random() < INSTRUCTED else ""]
    whole = PROMPT.format("\n".join([question, *lines, INSTRUCTION]))
    return Choice(kind, whole, said, "".join(f"{part}\n" for part in bare if part))


def _options(kind: str, rng: np.random.Generator) -> list[str]:
    if kind == "count":
        options = [str(number) for number in range(len(LETTERS))]
    elif kind == "read":
        marks, digits = _different(draw_mark, 2, rng), _different(draw_digit, 2, rng)
        options = [code_of(mark, digit) for mark in marks for digit in digits]
    elif kind == "glyph":
        options = _different(draw_mark, len(LETTERS), rng)
    elif kind == "mark":
        digit = draw_digit(rng)
        options = [code_of(mark, digit) for mark in _different(draw_mark, len(LETTERS), rng)]
    else:
        options = _codes(len(LETTERS), rng)
    return [str(option) for option in rng.permutation(options)]


def _codes(count: int, rng: np.random.Generator) -> list[str]:
    return _different(lambda rng: code_of(draw_mark(rng), draw_digit(rng)), count, rng)


def _different(draw: Callable[[np.random.Generator], str], count: int, rng: np.random.Generator) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        if (drawn := draw(rng)) not in found:
            found.append(drawn)
    return found


def _verdicts(shown: int, rng: np.random.Generator) -> str:
    """Three codes, so many of them with +, and their number, as a reply to "how many" has them."""
    marks = rng.permutation(["+"] * shown + ["-"] * (LISTED - shown))
    return " ".join([*(f"{code}{mark}" for code, mark in zip(_codes(LISTED, rng), marks, strict=True)), str(shown)])


def verdicts(plan: VideoPlan, count: int, rng: np.random.Generator) -> str:
    """`count` codes, each with + or - as it is shown or not; half are. Of those that are not, half differ in one glyph
    from a sign that is shown."""
    said = []
    for _ in range(count):
        sign = plan.signs[int(rng.integers(len(plan.signs)))].sign
        if rng.random() < 0.5:
            said.append(f"{sign.code}+")
        else:
            said.append(f"{unseen(plan.codes, rng, sign if rng.random() < 0.5 else None)}-")
    return " ".join(said)
