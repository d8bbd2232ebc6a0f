"""SignVid's train split as fine-tuning samples: short conversations about each video, in LLaVA's convention.

Some turns list all signs, which teaches reading many of them at once; the others are questions as in the benchmark,
answered with what the answer rests on and the option's letter. The turns of a
video are dealt out to several conversations in any order, so that most of them have to be answered from the video, as
in the benchmark, and not from what was said before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import InputError
from ..common.storage.files import atomic_write
from .dataset import DEVELOPMENT_SEED, SignVidConfig, video_name, write_videos
from .plan import VideoPlan
from .questions import Asked
from .signs import COLOURS

BY_COLOUR = "What do the signs say, by colour?"
BY_TIME = "What do the signs say, in order?"
BY_SIGN = "What does the {} sign say?"
PROMPT = "Question: {}"  # as the HLVid harness asks
TURNS = 2  # of a conversation at most, unless told otherwise

Sample = dict[str, Any]


def reply(asked: Asked) -> str:
    """What the model is taught to answer: the letter, after what it rests on and, where codes are counted, their
    number, since a model of this size cannot do all in one step. The 16 tokens that HLVid allows are enough, but for
    some counts of arrows."""
    counted = f" {asked.option}" if asked.kind == "count" else ""
    return f"{asked.seen}{counted} ({asked.answer})"


def plainly(plan: VideoPlan) -> list[tuple[str, str]]:
    """What each sign says, asked without options."""
    return [(BY_SIGN.format(shown.sign.colour), shown.sign.code) for shown in plan.signs]


def listing(plan: VideoPlan) -> tuple[tuple[str, str], ...]:
    """Questions that ask for all signs, with their answers."""
    known = {shown.sign.colour: shown.sign.code for shown in plan.signs}
    by_colour = ", ".join(f"{colour} {known[colour]}" for colour in COLOURS if colour in known)
    if not plan.shape.order:
        return ((BY_COLOUR, by_colour),)
    return (BY_TIME, ", ".join(plan.codes)), (BY_COLOUR, by_colour)


def conversations(
    video: str, plan: VideoPlan, questions: Sequence[Asked], order: np.random.Generator, most: int = TURNS
) -> list[Sample]:
    """Samples about one video. video: its path, from the data file's folder. most: turns of a conversation."""
    turns = [*listing(plan), *plainly(plan), *((PROMPT.format(asked.text), reply(asked)) for asked in questions)]
    turns = [turns[int(index)] for index in order.permutation(len(turns))]
    samples = []
    for first in range(0, len(turns), most):
        messages = []
        for number, (question, answer) in enumerate(turns[first : first + most]):
            messages.append({"from": "human", "value": f"<video>\n{question}" if number == 0 else question})
            messages.append({"from": "gpt", "value": answer})
        samples.append({"id": f"{video}-{first // most}", "video": video, "conversations": messages})
    return samples


def write_conversations(
    folder: str | Path,
    name: str,
    recipe: SignVidConfig,
    *,
    turns: int = TURNS,
    look: str | dict[str, Any] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """FOLDER/name/*.mp4 and FOLDER/name.jsonl. look: how fine-tuning is to look at the videos
    (finetuning/data/sample_gaze.py), where not as at all others. Raises InputError for what nothing is trained on: the
    test split and the seed that is kept for development."""
    if recipe.split != "train":
        raise InputError("SignVid: training samples come from the train split")
    if recipe.seed == DEVELOPMENT_SEED:
        raise InputError(f"SignVid: seed {DEVELOPMENT_SEED} is for development; train on another")
    if turns < 1:
        raise InputError(f"SignVid: a conversation needs one turn at least, got {turns}")
    target = Path(folder)
    write_videos(target / name, recipe, workers=workers, progress=progress)
    lines = []
    for number, plan, questions in recipe.asked():
        order = np.random.default_rng([recipe.seed, number, 6])
        samples = conversations(f"{name}/{video_name(number)}", plan, questions, order, turns)
        lines += [json.dumps(sample if look is None else {**sample, "gaze": look}) for sample in samples]
    path = target / f"{name}.jsonl"
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
