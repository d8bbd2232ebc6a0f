"""Many questions after one video: the video goes through the LLM once for all of them.

What stands before a question (the visual tokens of a video) is the same for each; the questions follow each other in
one row, each of them seeing what stands before, and itself. So an hour's tokens are read once for dozens of questions,
and the result is that of asking them one by one.

Shapes: B videos, P tokens of what stands before (filled up on the right), T tokens of all questions of a video.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "shared_prefix"
Kept = dict[int, tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer


def shared_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    kept: Kept | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query (B, heads, P + T, d), key and value (B, key heads, P + T, d), attention_mask (B, 1, T, P + T) of the
    questions alone -> (B, P + T, heads, d). What stands before them is causal and needs no mask: what it is filled up
    with comes last.

    kept: keys and values of what stands before, which is then not among the queries; where there are none yet, those of
    this call are noted in it.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotations are in float32 where autocast is on
    before = query.shape[2] - attention_mask.shape[2]
    if kept is not None and module.layer_idx in kept:
        first_keys, first_values = kept[module.layer_idx]
        key, value = torch.cat([first_keys, key], dim=2), torch.cat([first_values, value], dim=2)
    elif kept is not None:
        kept[module.layer_idx] = key, value
    if key.shape[1] != query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    parts = []
    if before:
        first, keys, values = (part[:, :, :before] for part in (query, key, value))
        parts.append(F.scaled_dot_product_attention(first, keys, values, is_causal=True, scale=scaling))
    if query.shape[2] > before:
        parts.append(F.scaled_dot_product_attention(query[:, :, before:], key, value, attention_mask, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, shared_attention)


def share_prefix(llm: Any) -> Any:
    """The same LLM (Qwen2 and its kin) with the attention that `question_states` needs."""
    llm.config._attn_implementation = NAME
    return llm


@contextmanager
def sharing_prefix(llm: Any) -> Iterator[Any]:
    """`share_prefix` for a while."""
    before = llm.config._attn_implementation
    try:
        yield share_prefix(llm)
    finally:
        llm.config._attn_implementation = before


def question_states(
    llm: Any, prefix: torch.Tensor, lengths: torch.Tensor, ids: torch.Tensor, question: torch.Tensor
) -> torch.Tensor:
    """Last hidden states (B, T, D) of the questions.

    prefix: (B, P, D) embeddings, of which `lengths` (B,) are real. ids: (B, T) tokens of all questions of a video, one
    question after the other; question: (B, T) which one each belongs to, -1 where the row is filled up.
    """
    positions, mask = _questions(prefix.shape[1], lengths, question)
    before = _before(prefix)
    states = torch.cat([prefix, llm.model.embed_tokens(ids)], dim=1)
    return _run(llm, states, torch.cat([before, positions], dim=1), mask)[:, prefix.shape[1] :]


def read_prefix(llm: Any, prefix: torch.Tensor) -> Kept:
    """What is kept of (B, P, D) embeddings for questions that come later."""
    kept: Kept = {}
    nothing = torch.empty(len(prefix), 1, 0, prefix.shape[1], dtype=torch.bool, device=prefix.device)
    _run(llm, prefix, _before(prefix), nothing, kept=kept)
    return kept


def later_states(
    llm: Any, kept: Kept, lengths: torch.Tensor, ids: torch.Tensor, question: torch.Tensor
) -> torch.Tensor:
    """As `question_states`, after what `read_prefix` kept."""
    positions, mask = _questions(kept[0][0].shape[2], lengths, question)
    return _run(llm, llm.model.embed_tokens(ids), positions, mask, kept=kept)


def _before(prefix: torch.Tensor) -> torch.Tensor:
    return torch.arange(prefix.shape[1], device=prefix.device).expand(len(prefix), -1)


def _questions(before: int, lengths: torch.Tensor, question: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (B, T) of the questions' tokens, each going on from its video, and what each sees (B, 1, T, P + T)."""
    place = torch.arange(question.shape[1], device=question.device).expand_as(question)
    starts = torch.ones_like(question, dtype=torch.bool)
    starts[:, 1:] = question[:, 1:] != question[:, :-1]
    within = place - torch.where(starts, place, 0).cummax(dim=1).values
    real = torch.arange(before, device=question.device) < lengths[:, None]
    own = (question[:, :, None] == question[:, None]) & (place[:, :, None] >= place[:, None])
    mask = torch.cat([real[:, None].expand(-1, question.shape[1], -1), own], dim=2)[:, None]
    return lengths[:, None] + within, mask


def _run(llm: Any, states: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    model = llm.model
    rotary = model.rotary_emb(states, positions)
    for layer in model.layers:
        states = layer(states, attention_mask=mask, position_embeddings=rotary, position_ids=positions, **options)
    return model.norm(states)
