"""The gaze decoder on a GPU in half precision: nine kernels a layer, no mask, no number that only the device knows.

Keys and values are read by the flash kernel up to each row's own length; rotating and storing, and the gated activation
are kernels of `kernels.py`. `FusedDecoder` with masks is the plain path that the tests hold this one against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ....common.compute.varlen import varlen_attention
from ..decoder import GazeDecoder, RMSNorm
from . import kernels
from .fused_decoder import FusedDecoder, add_linear
from .kv_cache import KeyValueCache


class GpuDecoder(FusedDecoder):
    """As FusedDecoder, on a cache of `rows` rows whose slots come first. kept: the query counts that are asked for."""

    def __init__(self, decoder: GazeDecoder, capacity: int, rows: int, kept: tuple[int, ...]) -> None:
        super().__init__(decoder, capacity)
        self.capacity = capacity
        self.cos, self.sin = self.cos.contiguous(), self.sin.contiguous()
        numbers = torch.arange(rows + 1, dtype=torch.int32, device=self.cos.device)
        self.key_starts = numbers * capacity
        self.query_starts = {count: numbers * count for count in {1, *kept}}  # made once: a recording reads them
        self.rows = numbers[:-1].long()

    def feed(
        self, x: torch.Tensor, positions: torch.Tensor, readout: torch.Tensor, cache: KeyValueCache
    ) -> torch.Tensor:
        """Embeddings (B, q, C) at positions (B, q), for the slots behind those in use -> final-normed states (B, C) of
        the tokens `readout` (B,). The lengths of the cache stay as they are."""
        batch, new = x.shape[:2]
        positions = positions.contiguous()
        counts = (cache.lengths + new).int()
        for number, layer in enumerate(self.layers):
            joined = F.linear(_normed(x, layer.first_norm), layer.qkv.weight, layer.qkv.bias)
            keys, values = cache.keys[number].transpose(1, 2), cache.values[number].transpose(1, 2)
            heads = self.queries // self.head_size
            queries = kernels.rotate_and_store(
                joined, positions, cache.lengths, self.cos, self.sin, keys, values, heads
            )
            if number == len(self.layers) - 1:
                new, counts = 1, (cache.lengths + readout + 1).int()
                x, queries = x[self.rows, readout][:, None], queries[self.rows, readout][:, None]
            mixed = varlen_attention(
                queries.flatten(0, 1),
                keys.flatten(0, 1),
                values.flatten(0, 1),
                self.query_starts[new],
                self.key_starts,
                counts,
                new,
                self.capacity,
                causal=True,
            )
            x = add_linear(x, layer.output, mixed.view(batch, new, -1))
            gate_up = F.linear(_normed(x, layer.second_norm), layer.gate_up.weight, layer.gate_up.bias)
            x = add_linear(x, layer.down, kernels.gated(gate_up))
        return _normed(x[:, 0], self.norm)


def _normed(x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
