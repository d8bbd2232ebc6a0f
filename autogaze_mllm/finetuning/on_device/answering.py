"""Greedy answers to many questions about many videos at once, as an LLM would give them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from .packs import NO_QUESTION, Turns, filled
from .shared_prefix import later_states, read_prefix


@torch.no_grad()
def answers(
    llm: Any,
    turns: Turns,
    videos: Sequence[torch.Tensor],
    questions: Sequence[Sequence[str]],
    end: int,
    most: int,
    precision: AbstractContextManager[Any],
) -> list[list[list[int]]]:
    """videos: visual tokens (n, D) of each; questions: about each. end: the token that ends an answer; most: tokens of
    an answer. precision: an autocast, or nothing. -> the tokens of every answer, without its end."""
    device = llm.model.embed_tokens.weight.device
    rows, numbers, places = [], [], []
    for asked in questions:
        row: list[int] = []
        number: list[int] = []
        at: list[int] = []
        for n, question in enumerate(asked):
            prompt = turns.encode(turns.join + question + turns.after)
            row += prompt + [end] * most
            number += [n] * (len(prompt) + most)
            at.append(len(row) - most)
        rows.append(row)
        numbers.append(number)
        places.append(at)
    ids, question_of = filled(rows, end, device)[0], filled(numbers, NO_QUESTION, device)[0]
    video = torch.tensor([n for n, at in enumerate(places) for _ in at], device=device)
    first = torch.tensor([place for at in places for place in at], device=device)
    with precision:
        start = llm.model.embed_tokens(torch.tensor(turns.prefix(), device=device))
        whole = [torch.cat([start, tokens.to(start.dtype)]) for tokens in videos]
        lengths = torch.tensor([len(part) for part in whole], device=device)
        kept = read_prefix(llm, torch.nn.utils.rnn.pad_sequence(whole, batch_first=True))
        done = torch.zeros(len(video), dtype=torch.bool, device=device)
        for step in range(most):
            # What is not answered yet comes later in the row, so nothing sees it.
            states = later_states(llm, kept, lengths, ids, question_of)
            said = llm.lm_head(states[video, first + step - 1]).argmax(dim=1)
            said = torch.where(done, end, said)
            ids[video, first + step] = said
            done |= said == end
            if bool(done.all()):
                break
    found = ids[video[:, None], first[:, None] + torch.arange(most, device=device)].tolist()
    replies = iter([row[: row.index(end)] if end in row else row for row in found])
    return [[next(replies) for _ in asked] for asked in questions]
