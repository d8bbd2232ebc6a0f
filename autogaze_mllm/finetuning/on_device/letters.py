"""Choosing an option's letter, learnt without videos: what is said is given, and only the letter after it is learnt.

To choose, an LLM has to find the option that equals what it has just said and to carry that option's letter over. Text
alone teaches it. Most of the difficulty is in finding the beginning, so the exercises are many, short and easy at
first: some have options of one glyph, some are bare of the question.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...signvid.exercises import choice
from ...signvid.questions import LETTERS
from .packs import Turns
from .signs import Text

SHARE_BARE = 0.5  # of the choices


def choices(turns: Turns, count: int, rng: np.random.Generator) -> list[Text]:
    """Questions with their options, each followed by the replies that would choose each of them."""
    found = []
    for number in range(count):
        drawn = choice(rng)
        text = drawn.bare if number < SHARE_BARE * count else turns.join + drawn.question
        prefix = np.array(turns.prefix(text + turns.after), dtype=np.int32)
        found.append(Text(prefix, turns.choosing(drawn.said, LETTERS)))
    return found


def optimizers_of(llm: Any, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW, or, for the matrices of the layers, Muon, whose updates are orthogonal (Jordan et al. 2024), scaled to the
    size of AdamW's, which then has the rest at half the rate. "scale" of each group: its part of the learning rate."""
    found: list[torch.optim.Optimizer]
    if not muon:
        found = [torch.optim.AdamW(llm.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]
    else:
        names = [name for name, p in llm.named_parameters() if p.ndim == 2 and "embed" not in name]
        inner = [p for name, p in llm.named_parameters() if name in names]
        rest = [p for name, p in llm.named_parameters() if name not in names]
        found = [
            torch.optim.Muon(inner, lr=lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr / 2, betas=(0.9, 0.98), weight_decay=0.0),
        ]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["scale"] = group["lr"] / lr
    return found
