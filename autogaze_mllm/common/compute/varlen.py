"""Attention over sequences of different lengths, packed side by side, by the flash kernel that torch carries.

It needs no mask and reads each key once for a block of queries, whatever the lengths are, and takes them from the
device, so that nobody has to know them on the host. Inference only, on CUDA, in half precision.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

AMPERE = (8, 0)  # the first generation that the kernel is made for


def wants_gradient(*tensors: torch.Tensor) -> bool:
    """Whether somebody learns through any of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def can_run(q: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether `varlen_attention` takes queries (N, H, d) like these. others: keys and values, which must not be learned
    through either: with LoRA on one projection alone the queries need no gradient and the values do."""
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and not wants_gradient(q, *others)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and torch.version.hip is None
        and torch.cuda.get_device_capability(q.device) >= AMPERE
    )


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    key_counts: torch.Tensor,
    most_queries: int,
    most_keys: int,
    causal: bool,
) -> torch.Tensor:
    """q (N, H, d), k, v (M, G, d) -> (N, H, d); H is a multiple of G.

    Sequence i has the queries [query_starts[i], query_starts[i + 1]) and the keys [key_starts[i], key_starts[i] +
    key_counts[i]), which may overlap those of others. query_starts, key_starts: (S + 1,) int32; key_counts: (S,) int32;
    most_queries, most_keys: upper bounds. causal: the last query sees all keys, the one before it one fewer, and so on.
    """
    return _kernel()(q, k, v, query_starts, key_starts, key_counts, most_queries, most_keys, causal)


@functools.cache
def _kernel() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    def public(q: Any, k: Any, v: Any, qs: Any, ks: Any, counts: Any, nq: int, nk: int, causal: bool) -> Any:
        window, grouped = (-1, 0 if causal else -1), q.shape[1] != k.shape[1]
        return varlen_attn(q, k, v, qs, ks, nq, nk, window_size=window, enable_gqa=grouped, seqused_k=counts)

    def operator(q: Any, k: Any, v: Any, qs: Any, ks: Any, counts: Any, nq: int, nk: int, causal: bool) -> Any:
        forward = torch.ops.aten._flash_attention_forward
        return forward(q, k, v, qs, ks, nq, nk, 0.0, causal, False, seqused_k=counts)[0]

    # The public function takes the number of keys of each sequence from torch 2.12 on.
    return public if "seqused_k" in inspect.signature(varlen_attn).parameters else operator
