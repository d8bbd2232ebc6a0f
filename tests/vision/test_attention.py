"""Packed attention: every backend gives what a plain masked softmax over the whole packed sequence gives."""

from __future__ import annotations

import importlib.util
import shutil
from itertools import product
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.vision import attention
from autogaze_mllm.vision.attention import MAX_PADDED_KEYS, PackedAttention

from ..helpers.attention import CHANNELS, CPU, HEADS, RAGGED, Clips, inputs, plain

KINDS = list(product(["block_causal", "causal", "bidirectional"], [False, True]))
each_kind = pytest.mark.parametrize(("attn_type", "frame_independent"), KINDS)
each_shape = pytest.mark.parametrize("clips", RAGGED.values(), ids=RAGGED)


def packed(
    clips: Clips, attn_type: Any, frame_independent: bool, backend: Any, device: torch.device = CPU
) -> PackedAttention:
    return PackedAttention(clips, attn_type, frame_independent, backend, device)


@each_shape
@each_kind
@pytest.mark.parametrize("backend", ["sdpa", "sdpa by spans", "eager"])
def test_against_the_plain_softmax(
    clips: Clips, attn_type: str, frame_independent: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "sdpa by spans":  # as longer clips are done
        monkeypatch.setattr(attention, "FEW_QUERIES", 0)
        backend = "sdpa"
    q, k, v = inputs(clips)
    result = packed(clips, attn_type, frame_independent, backend)(q, k, v)
    assert torch.allclose(result, plain(clips, attn_type, frame_independent, q, k, v), atol=2e-6)


@each_kind
def test_flex_attention(attn_type: str, frame_independent: bool) -> None:
    """One shape of several blocks of 128 tokens: compiling takes its time."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    clips = [*RAGGED["ragged"], [90, 0, 70], [40, 45]]
    q, k, v = inputs(clips)
    result = packed(clips, attn_type, frame_independent, "flex_attention")(q, k, v)
    assert torch.allclose(result, plain(clips, attn_type, frame_independent, q, k, v), atol=2e-6)


@each_kind
@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("clips", [[], [[]], [[0, 0], []]], ids=str)
def test_nothing_kept(clips: Clips, attn_type: str, frame_independent: bool, backend: str) -> None:
    q, k, v = inputs(clips)
    assert packed(clips, attn_type, frame_independent, backend)(q, k, v).shape == (0, HEADS, CHANNELS)


@each_kind
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_gradients(attn_type: str, frame_independent: bool, backend: str) -> None:
    clips = RAGGED["ragged"]
    ours, theirs = ([x.requires_grad_() for x in inputs(clips)] for _ in range(2))
    wanted = inputs(clips, seed=1)[0]
    (packed(clips, attn_type, frame_independent, backend)(*ours) * wanted).sum().backward()
    (plain(clips, attn_type, frame_independent, *theirs) * wanted).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


@each_kind
def test_index_plan_of_the_flash_kernel(attn_type: str, frame_independent: bool) -> None:
    """A plain loop with the meaning that the kernel gives to its arguments."""
    clips = RAGGED["ragged"]
    q, k, v = inputs(clips)
    planned = packed(clips, attn_type, frame_independent, "sdpa")
    plan: dict[str, Any] = dict(planned._varlen)
    keys, values = k[plan["rows"]], v[plan["rows"]]
    q_ends, k_ends = plan["cu_seqlens_q"], plan["cu_seqlens_k"]
    assert q_ends.dtype == k_ends.dtype == torch.int32
    assert (int(q_ends[-1]), int(k_ends[-1])) == (len(q), len(keys))
    assert plan["max_seqlen_q"] == int(q_ends.diff().max())
    assert plan["max_seqlen_k"] == int(k_ends.diff().max())
    outputs = []
    for i in range(len(q_ends) - 1):
        queries, part = q[q_ends[i] : q_ends[i + 1]], slice(int(k_ends[i]), int(k_ends[i + 1]))
        scores = torch.einsum("qhd,khd->hqk", queries, keys[part]) / CHANNELS**0.5
        if planned.causal:  # aligned at the bottom right, as the kernel does
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + scores.shape[2] - scores.shape[1])
            scores = scores.masked_fill(hidden, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values[part]))
    assert torch.allclose(torch.cat(outputs), plain(clips, attn_type, frame_independent, q, k, v), atol=2e-6)


class LargestOutput(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return result


@each_kind
def test_no_score_matrix_is_made(attn_type: str, frame_independent: bool) -> None:
    clips = [[64] * 16, [60] * 15]
    longest = 64 * 16
    q, k, v = inputs(clips)
    with LargestOutput() as largest:
        packed(clips, attn_type, frame_independent, "sdpa")(q, k, v)
    assert q.numel() <= largest.numbers < HEADS * longest * longest / 4


def test_memory_of_a_long_clip() -> None:
    """Hundreds of frames that all see what came before them: their keys are not laid side by side all at once."""
    clips = [[16] * 256]
    q, k, v = inputs(clips)
    with LargestOutput() as largest:
        packed(clips, "block_causal", False, "sdpa")(q, k, v)
    assert largest.numbers <= MAX_PADDED_KEYS * HEADS * CHANNELS


def test_very_many_tokens() -> None:
    """More than what is padded together at once."""
    clips = [[250] * 150, [200] * 200]
    q, k, v = inputs(clips)
    result = packed(clips, "block_causal", True, "sdpa")(q, k, v)
    for frame, start in ((250, 0), (250, 149 * 250), (200, 150 * 250), (200, 150 * 250 + 199 * 200)):
        here = slice(start, start + frame)
        expected = plain([[frame]], "bidirectional", False, q[here], k[here], v[here])
        assert torch.allclose(result[here], expected, atol=2e-6)


def test_half_precision() -> None:
    clips = RAGGED["ragged"]
    q, k, v = inputs(clips)
    expected = plain(clips, "block_causal", False, q, k, v)
    for backend in ("sdpa", "eager"):
        result = packed(clips, "block_causal", False, backend)(q.bfloat16(), k.bfloat16(), v.bfloat16())
        assert result.dtype == torch.bfloat16
        assert torch.allclose(result.float(), expected, atol=0.05)


def test_unknown_settings() -> None:
    with pytest.raises(InputError, match="attn_type 'diagonal' is not one of block_causal, causal, bidirectional"):
        packed([[1]], "diagonal", False, "sdpa")
    with pytest.raises(InputError, match="'fast' is not one of sdpa, eager, flex_attention, flash_attention_2"):
        packed([[1]], "causal", False, "fast")


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_missing_flash_attn_says_what_to_install() -> None:
    with pytest.raises(InputError, match=r"pip install .*flash"):
        packed([[1]], "causal", False, "flash_attention_2")


@pytest.mark.cuda
@each_shape
@each_kind
def test_flash_attention(clips: Clips, attn_type: str, frame_independent: bool) -> None:
    pytest.importorskip("flash_attn")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    q, k, v = (x.half() for x in inputs(clips, device=device))
    result = packed(clips, attn_type, frame_independent, "flash_attention_2", device)(q, k, v)
    assert torch.allclose(result.float(), plain(clips, attn_type, frame_independent, q, k, v), atol=5e-3)
