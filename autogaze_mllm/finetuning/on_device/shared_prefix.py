"""Many questions after one video: the video goes through the LLM once for all of them.

What stands before a question (the visual tokens of a video) is the same for each; the questions follow each other in
one row, each of them seeing what stands before, and itself. So an hour's tokens are read once for dozens of questions,
and the result is that of asking them one by one.

Shapes: B videos, P tokens of what stands before (filled up on the right), T tokens of all questions of a video.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "shared_prefix"


def shared_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query (B, heads, P + T, d), key and value (B, key heads, P + T, d), attention_mask (B, 1, T, P + T) of the
    questions alone -> (B, P + T, heads, d). What stands before them is causal and needs no mask: what it is filled up
    with comes last."""
    before = query.shape[2] - attention_mask.shape[2]
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotations are in float32 where autocast is on
    if key.shape[1] != query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    parts = []
    if before:
        first, keys, values = (part[:, :, :before] for part in (query, key, value))
        parts.append(F.scaled_dot_product_attention(first, keys, values, is_causal=True, scale=scaling))
    parts.append(F.scaled_dot_product_attention(query[:, :, before:], key, value, attention_mask, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, shared_attention)


def share_prefix(llm: Any) -> Any:
    """The same LLM (Qwen2 and its kin) with the attention that `question_states` needs."""
    llm.config._attn_implementation = NAME
    return llm


def question_states(
    llm: Any, prefix: torch.Tensor, lengths: torch.Tensor, ids: torch.Tensor, question: torch.Tensor
) -> torch.Tensor:
    """Last hidden states (B, T, D) of the questions.

    prefix: (B, P, D) embeddings, of which `lengths` (B,) are real. ids: (B, T) tokens of all questions of a video, one
    question after the other; question: (B, T) which one each belongs to, -1 where the row is filled up.
    """
    model = llm.model
    count, before = prefix.shape[:2]
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts = torch.ones_like(question, dtype=torch.bool)
    starts[:, 1:] = question[:, 1:] != question[:, :-1]
    within = place - torch.where(starts, place, 0).cummax(dim=1).values
    positions = torch.arange(before, device=ids.device).expand(count, -1)
    positions = torch.cat([positions, lengths[:, None] + within], dim=1)
    mask = torch.cat(
        [
            (torch.arange(before, device=ids.device) < lengths[:, None])[:, None].expand(-1, ids.shape[1], -1),
            (question[:, :, None] == question[:, None]) & (place[:, :, None] >= place[:, None]),
        ],
        dim=2,
    )[:, None]
    states = torch.cat([prefix, model.embed_tokens(ids)], dim=1)
    rotary = model.rotary_emb(states, positions)
    for layer in model.layers:
        states = layer(states, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
    return model.norm(states[:, before:])
