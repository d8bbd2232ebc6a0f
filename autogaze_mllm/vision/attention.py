"""Attention over packed clips of different lengths.

Every mask that the tower needs is a list of spans: "these consecutive queries see these consecutive keys". Block-causal
is one span per frame (its tokens see the clip up to the end of the frame), bidirectional and causal are one span per
clip. Spans need no mask at all; backends differ only in how they run them. No (queries, keys) tensor of scores is ever
made; flex_attention alone builds a boolean one, once per structure, to find the blocks that it may skip.

Shapes: N packed tokens, H heads, d channels per head.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from ..common.compute.varlen import can_run, varlen_attention
from ..common.errors import InputError
from ..common.extras import require_extra

AttentionType = Literal["block_causal", "causal", "bidirectional"]
Backend = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]

MAX_PADDED_KEYS = 1 << 16  # tokens of one padded batch of spans; bounds the memory of the sdpa backend
FEW_QUERIES = 16  # of a span on average: below, kernels are mostly busy with what is not there
SHORT_CLIP = 256  # tokens; clips of at most so many are worth a mask of all their queries and keys


@dataclass(frozen=True)
class Span:
    """Queries [start, start + queries) see keys [first_key, first_key + keys)."""

    start: int
    queries: int
    first_key: int
    keys: int


def make_spans(clips: list[list[int]], attn_type: AttentionType, frame_independent: bool) -> list[Span]:
    """clips: kept tokens of each frame of each clip. -> spans in packed order; those of `causal` are causal inside."""
    if frame_independent:
        clips = [[count] for clip in clips for count in clip]
    spans, start = [], 0
    for clip in clips:
        if attn_type == "block_causal":
            position = start
            for count in clip:
                if count:
                    spans.append(Span(position, count, start, position + count - start))
                position += count
        elif sum(clip):
            spans.append(Span(start, sum(clip), start, sum(clip)))
        start += sum(clip)
    return spans


class PackedAttention:
    """Runs one clip structure for all layers. Call with q, k, v of shape (N, H, d); returns (N, H, d)."""

    def __init__(
        self,
        clips: list[list[int]],
        attn_type: AttentionType,
        frame_independent: bool,
        backend: Backend,
        device: torch.device,
        dropout: float = 0.0,
    ) -> None:
        self.clips, self.attn_type, self.frame_independent = clips, attn_type, frame_independent
        self.causal = attn_type == "causal"
        self._biases: dict[torch.dtype, list[torch.Tensor]] = {}
        self.device, self.dropout = device, dropout
        if attn_type not in get_args(AttentionType):
            raise InputError(f"attn_type {attn_type!r} is not one of {', '.join(get_args(AttentionType))}")
        if backend not in get_args(Backend):
            raise InputError(f"attention backend {backend!r} is not one of {', '.join(get_args(Backend))}")
        self.backend = backend
        if backend == "flash_attention_2":
            require_extra("flash", backend)
        if backend == "flex_attention" and dropout:
            raise InputError("flex_attention has no attention dropout; use another backend or set it to 0")

    @functools.cached_property
    def spans(self) -> list[Span]:
        return make_spans(self.clips, self.attn_type, self.frame_independent)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        runners = {
            "sdpa": self._sdpa,
            "eager": self._eager,
            "flex_attention": self._flex,
            "flash_attention_2": self._flash,
        }
        return runners[self.backend](q, k, v)

    def _eager(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Span by span with an explicit softmax: the plain reference."""
        outputs = []
        for span in self.spans:
            keys = slice(span.first_key, span.first_key + span.keys)
            scores = (
                torch.einsum("qhd,khd->hqk", q[span.start : span.start + span.queries], k[keys]) * q.shape[-1] ** -0.5
            )
            if self.causal:
                hidden = torch.ones(span.queries, span.keys, dtype=torch.bool, device=q.device).triu(1)
                scores = scores.masked_fill(hidden, -torch.inf)
            weights = F.dropout(scores.float().softmax(-1).to(q.dtype), self.dropout)
            outputs.append(torch.einsum("hqk,khd->qhd", weights, v[keys]))
        return torch.cat(outputs) if outputs else torch.zeros_like(q)

    @functools.cached_property
    def _batches(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]]:
        """Spans of like length side by side: query rows (b, q), key rows (b, k), key mask or None, real queries."""
        order = sorted(self.spans, key=lambda span: (span.keys, span.queries))
        groups: list[list[Span]] = []
        for span in order:
            group = groups[-1] if groups else []
            alike = group and span.keys <= 1.25 * group[0].keys + 16 and span.queries <= 2 * group[0].queries + 16
            if alike and (len(group) + 1) * span.keys <= MAX_PADDED_KEYS:
                group.append(span)
            else:
                groups.append([span])
        batches = []
        for group in groups:
            queries, real = _rows([(s.start, s.queries) for s in group], self.device)
            keys, visible = _rows([(s.first_key, s.keys) for s in group], self.device)
            # Right padding needs no key mask when attention is causal: padded keys come after every real query.
            mask = None if self.causal or bool(visible.all()) else visible[:, None, None]
            batches.append((queries, keys, mask, real))
        return batches

    @functools.cached_property
    def _sequences(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
        """Where the queries and keys of each span begin, how many keys it has, and the most of each, for
        `varlen_attention`; spans lie in packed order, so that the queries of one end where those of the next begin."""
        starts = [*(span.start for span in self.spans), self.spans[-1].start + self.spans[-1].queries]
        keys = [*(span.first_key for span in self.spans), 0]
        counts = [span.keys for span in self.spans]
        tensors = (torch.tensor(numbers, dtype=torch.int32).to(self.device) for numbers in (starts, keys, counts))
        return *tensors, max(span.queries for span in self.spans), max(counts)  # type: ignore[return-value]

    def _sdpa(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """torch's own kernels: in half precision on a GPU the one for packed sequences, else batches of spans."""
        if self._short_clips:
            return self._whole_clips(q, k, v)
        if self.spans and not self.dropout and can_run(q, k, v):
            starts, keys, counts, most_queries, most_keys = self._sequences
            return varlen_attention(q, k, v, starts, keys, counts, most_queries, most_keys, self.causal)
        outputs, rows = [], []
        for queries, keys, mask, real in self._batches:
            output = F.scaled_dot_product_attention(
                q[queries].transpose(1, 2),
                k[keys].transpose(1, 2),
                v[keys].transpose(1, 2),
                attn_mask=mask,
                is_causal=self.causal,
                dropout_p=self.dropout,
            ).transpose(1, 2)
            outputs.append(output[real])
            rows.append(queries[real])
        # Every token is the query of exactly one span: put back in order with one copy.
        return torch.cat(outputs)[torch.cat(rows).argsort()] if outputs else torch.zeros_like(q)

    @functools.cached_property
    def _short_clips(self) -> bool:
        """Whether clips have so few tokens, in so many frames, that a mask costs less than a span for each frame."""
        if self.attn_type != "block_causal" or self.frame_independent:
            return False
        totals = [sum(clip) for clip in self.clips]
        frames = sum(count > 0 for clip in self.clips for count in clip)
        return frames > len(totals) and max(totals) <= SHORT_CLIP and sum(totals) < FEW_QUERIES * frames

    @functools.cached_property
    def _clip_batches(self) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Clips of like length side by side: rows (b, L), and who sees whom (b, 1, L, L). Then the row of each token
        among those of all batches, one after the other."""
        counts = torch.tensor([count for clip in self.clips for count in clip])
        frame = torch.arange(len(counts)).repeat_interleave(counts)  # of each token
        totals = torch.tensor([sum(clip) for clip in self.clips])
        starts, order = totals.cumsum(0) - totals, totals.argsort(stable=True)
        order_back, offset, batches = torch.empty(len(frame), dtype=torch.long), 0, []
        for clips in _alike(order[totals[order] > 0].tolist(), totals.tolist()):
            longest = -(-int(totals[clips].max()) // 8) * 8  # kernels want masks with rows of multiples of 8
            steps = torch.arange(longest)
            rows = starts[clips, None] + steps.minimum(totals[clips, None] - 1)
            real = steps < totals[clips, None]
            seen = (frame[rows][:, None] <= frame[rows][..., None]) & real[:, None]
            order_back[rows[real]] = offset + real.flatten().nonzero().squeeze(1)
            offset += rows.numel()
            batches.append((rows.to(self.device), seen[:, None].to(self.device)))
        return batches, order_back.to(self.device)

    def _whole_clips(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        batches, order_back = self._clip_batches
        if q.dtype not in self._biases:  # once for all layers: of booleans the kernels would make numbers in each
            self._biases[q.dtype] = [torch.where(seen, 0.0, -torch.inf).to(q.dtype) for _, seen in batches]
        outputs = []
        for (rows, _), bias in zip(batches, self._biases[q.dtype], strict=True):
            queries, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))
            output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=self.dropout)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[order_back]

    @functools.cached_property
    def _block_mask(self) -> object:
        from torch.nn.attention.flex_attention import create_block_mask

        total = sum(span.queries for span in self.spans)
        first = torch.zeros(total, dtype=torch.long, device=self.device)
        last = torch.zeros(total, dtype=torch.long, device=self.device)
        for span in self.spans:
            rows = slice(span.start, span.start + span.queries)
            first[rows] = span.first_key
            last[rows] = span.first_key + span.keys

        def visible(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            inside = (key >= first[query]) & (key < last[query])
            return inside & (key <= query) if self.causal else inside

        return create_block_mask(visible, None, None, total, total, device=str(self.device))

    def _flex(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not self.spans:
            return torch.zeros_like(q)
        heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
        return _flex_function()(*heads, block_mask=self._block_mask)[0].transpose(0, 1)

    @functools.cached_property
    def _varlen(self) -> dict[str, torch.Tensor | int]:
        """Arguments of the variable-length kernel; `rows` gathers the keys of all spans one after the other."""
        ends = [[0], [0]]
        for span in self.spans:
            ends[0].append(ends[0][-1] + span.queries)
            ends[1].append(ends[1][-1] + span.keys)
        rows = torch.cat([torch.arange(s.first_key, s.first_key + s.keys) for s in self.spans])
        return {
            "rows": rows.to(self.device),
            "cu_seqlens_q": torch.tensor(ends[0], dtype=torch.int32, device=self.device),
            "cu_seqlens_k": torch.tensor(ends[1], dtype=torch.int32, device=self.device),
            "max_seqlen_q": max(span.queries for span in self.spans),
            "max_seqlen_k": max(span.keys for span in self.spans),
        }

    def _flash(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from flash_attn import flash_attn_varlen_func

        if not self.spans:
            return torch.zeros_like(q)
        settings = dict(self._varlen)
        rows = settings.pop("rows")
        return flash_attn_varlen_func(q, k[rows], v[rows], causal=self.causal, dropout_p=self.dropout, **settings)


def _alike(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Numbers in ascending order of their lengths, cut into groups whose members are worth padding to the longest."""
    groups: list[list[int]] = []
    for number in order:
        group = groups[-1] if groups else []
        longest = lengths[number]
        if group and longest <= 1.25 * lengths[group[0]] + 16 and (len(group) + 1) * longest <= MAX_PADDED_KEYS:
            group.append(number)
        else:
            groups.append([number])
    return groups


def _rows(ranges: list[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(start, length) pairs -> row numbers (b, longest), the last row repeated as padding, and which are real."""
    starts = torch.tensor([start for start, _ in ranges], device=device)[:, None]
    lengths = torch.tensor([length for _, length in ranges], device=device)[:, None]
    steps = torch.arange(max(length for _, length in ranges), device=device)[None]
    return starts + steps.minimum(lengths - 1), steps < lengths


@functools.cache
def _flex_function():  # type: ignore[no-untyped-def]
    """flex_attention saves memory only when compiled; without a compiler it would build the full score matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
