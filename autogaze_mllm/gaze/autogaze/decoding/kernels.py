"""Triton kernels of the gaze decoder on a GPU.

A step of ten tokens is so small that starting a kernel costs as much as what it does. The profile of an H100 asked for
three: rotating queries and keys and storing keys and values, the gated activation, and all that follows the scores of a
step (ten choices, one after the other, the stop rule, the bookkeeping), which otherwise are eighty kernels.

Each does what the plain code beside it does (`fused_decoder.py`, `device_loop.py`); the tests hold them against it, in
Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rotate_and_store(
    joined,  # (tokens, (H + 2 G) * d) queries, keys, values
    positions,  # (tokens,) of the rotation
    lengths,  # (rows,) slots in use
    cosines,
    sines,  # (positions, d), sines of the first half negated
    queries,  # out: (tokens, H, d)
    keys,
    values,  # out: (rows * capacity, G, d)
    new,  # tokens of a row
    capacity,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = token // new
    slot = row * capacity + tl.load(lengths + row) + token % new
    position = tl.load(positions + token)
    head = tl.arange(0, HEAD_BLOCK)[:, None]
    channel = tl.arange(0, SIZE_BLOCK)[None, :]
    real = (head < HEADS + 2 * GROUPS) & (channel < SIZE)
    start = joined + token * (HEADS + 2 * GROUPS) * SIZE
    x = tl.load(start + head * SIZE + channel, mask=real, other=0.0).to(tl.float32)
    other = (channel + SIZE // 2) % SIZE
    partner = tl.load(start + head * SIZE + other, mask=real, other=0.0).to(tl.float32)
    cos = tl.load(cosines + position * SIZE + channel, mask=channel < SIZE, other=0.0).to(tl.float32)
    sin = tl.load(sines + position * SIZE + channel, mask=channel < SIZE, other=0.0).to(tl.float32)
    turned = x * cos + partner * sin
    tl.store(queries + token * HEADS * SIZE + head * SIZE + channel, turned, mask=real & (head < HEADS))
    below = head - HEADS
    is_key = real & (below >= 0) & (below < GROUPS)
    tl.store(keys + (slot * GROUPS + below) * SIZE + channel, turned, mask=is_key)
    tl.store(values + (slot * GROUPS + below - GROUPS) * SIZE + channel, x, mask=real & (below >= GROUPS))


def rotate_and_store(
    joined: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """joined (B, q, (H + 2 G) * d) -> rotated queries (B, q, H, d); keys and values go to slots [length, length + q) of
    keys, values (B, capacity, G, d)."""
    batch, new = joined.shape[:2]
    capacity, groups, size = keys.shape[1:]
    queries = joined.new_empty(batch, new, heads, size)
    _rotate_and_store[(batch * new,)](
        joined,
        positions,
        lengths,
        cos,
        sin,
        queries,
        keys,
        values,
        new,
        capacity,
        HEADS=heads,
        GROUPS=groups,
        SIZE=size,
        HEAD_BLOCK=triton.next_power_of_2(heads + 2 * groups),
        SIZE_BLOCK=triton.next_power_of_2(size),
        num_warps=2,
    )
    return queries


@triton.jit
def _gated(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    real = channel < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + channel, mask=real, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + channel, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + channel, gate / (1.0 + tl.exp(-gate)) * up, mask=real)


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of (B, q, 2 * I) -> (B, q, I)."""
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    rows = gate_up.numel() // (2 * width)
    _gated[(rows,)](gate_up, out, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=4)
    return out


@triton.jit
def _choose(
    scores,  # (rows, K, V)
    losses,  # (rows, K) predicted
    loss_threshold,  # (rows,) bound of the stop rule
    left,  # (rows,) budget of the frame
    at,  # (1,) entries of the frame so far
    active,  # (rows,) bool
    used,  # (rows, V) bool
    ids,
    unfed,  # (rows, K)
    unfed_counts,
    entries,  # (rows,)
    chosen,
    drawn,  # (rows, columns)
    columns,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    vocabulary = tl.arange(0, BLOCK)
    known = vocabulary < V
    end = V - 1
    taken = tl.load(used + row * V + vocabulary, mask=known, other=1).to(tl.int1)
    begin = tl.load(at)
    budget = tl.load(left + row)
    bound = tl.load(loss_threshold + row)
    goes_on = tl.load(active + row).to(tl.int1)
    finished = begin + K >= budget
    real_count = begin * 0
    allowed_count = begin * 0
    for head in tl.static_range(K):
        score = tl.load(scores + (row * K + head) * V + vocabulary, mask=known, other=-float("inf")).to(tl.float32)
        pick = tl.argmax(tl.where(taken, -float("inf"), score), 0, tie_break_left=True)
        taken = taken | (vocabulary == pick)
        column = begin + head
        allowed = goes_on & (column < budget)
        # Every frame keeps at least one patch: its first head does not ask.
        met = (tl.load(losses + row * K + head).to(tl.float32) <= bound) & (column > 0)
        real = allowed & (met == 0)
        finished = finished | (met & allowed)
        tl.store(ids + row * K + head, tl.where(real, pick, end))
        tl.store(chosen + row * columns + column, tl.where(real, pick, end))
        tl.store(drawn + row * columns + column, tl.where(allowed, pick, end))
        # Not fed yet are the ids of a frame's last step, real ones first; earlier steps are overwritten by later ones.
        tl.store(unfed + row * K + real_count, pick, mask=real)
        allowed_count += allowed.to(tl.int64)
        real_count += real.to(tl.int64)
    for head in tl.static_range(K):
        tl.store(unfed + row * K + head, end, mask=goes_on & (head >= real_count))
    tl.store(unfed_counts + row, real_count, mask=goes_on)
    tl.store(used + row * V + vocabulary, taken.to(tl.int8), mask=known)
    tl.store(entries + row, tl.load(entries + row) + allowed_count)
    tl.store(active + row, (goes_on & (finished == 0)).to(tl.int8))


def choose(
    scores: torch.Tensor,
    losses: torch.Tensor,
    loss_threshold: torch.Tensor,
    left: torch.Tensor,
    at: torch.Tensor,
    active: torch.Tensor,
    used: torch.Tensor,
    ids: torch.Tensor,
    unfed: torch.Tensor,
    unfed_counts: torch.Tensor,
    entries: torch.Tensor,
    chosen: torch.Tensor,
    drawn: torch.Tensor,
) -> None:
    """What `DeviceFrames._choose` does without sampling, all but counting `at` on. scores: (B, K, V), losses: (B, K);
    the others are its buffers, which are changed."""
    rows, step, vocabulary = scores.shape
    _choose[(rows,)](
        scores,
        losses,
        loss_threshold,
        left,
        at,
        active.view(torch.int8),
        used.view(torch.int8),
        ids,
        unfed,
        unfed_counts,
        entries,
        chosen,
        drawn,
        chosen.shape[1],
        K=step,
        V=vocabulary,
        BLOCK=triton.next_power_of_2(vocabulary),
        num_warps=4,
    )
