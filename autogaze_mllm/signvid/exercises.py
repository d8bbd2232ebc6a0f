"""SignVid without pictures: what a video shows, frame by frame in words, and the questions of the benchmark about it.

A text is thousands of times as cheap as a video. Matching an option to its letter, counting and telling what came first
are learnt on these; what is left to learn from videos is to find the same in visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .conversations import PROMPT, listing, plainly, reply
from .plan import VideoPlan, VideoShape, plan_video
from .questions import Asked, ask_about, balanced_letters

NOTHING = " none"
FRAMES, SIGNS = (6, 20), (3, 6)  # of a video in words: fewest and most

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
