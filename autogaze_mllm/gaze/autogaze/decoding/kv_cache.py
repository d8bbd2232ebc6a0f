"""Preallocated keys and values of the gaze decoder, and attention over them.

The cache is compact: a row holds only tokens that later tokens may see, so the slot of a token *is* its position, a key
is visible exactly when its slot is not after the query's, and no padding mask exists. Rows have their own lengths,
which is what makes a row's result independent of its neighbours.

Shapes: B rows, q new tokens, L slots, H query heads, G key/value heads, d channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..decoder import Attend

MASK_ENTRIES = 1 << 24  # of a mask of the whole cache, where one has to be made


@dataclass(frozen=True)
class _Group:
    """Rows [first, last) of a batch that lie side by side in the cache from row `stored` on and are equally long.

    length: slots in use before the batch; real: new tokens that count (what follows them is padding)."""

    first: int
    last: int
    stored: int
    length: int
    real: int


class KeyValueCache:
    """keys, values: per layer (B, G, capacity, d). lengths: (B,) slots in use of each row.

    Writing beyond a row's length is harmless: those slots lie after every query of the row until they are written anew.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_size: int,
        like: torch.Tensor,
        slots_first: bool = False,
    ) -> None:
        """slots_first: in memory the heads of a slot lie together, (B, capacity, G, d), as kernels for packed sequences
        read them; the shape stays."""
        self.capacity = capacity

        def block() -> torch.Tensor:
            if slots_first:
                return like.new_zeros(batch, capacity, kv_heads, head_size).transpose(1, 2)
            return like.new_zeros(batch, kv_heads, capacity, head_size)

        self.keys = [block() for _ in range(layers)]
        self.values = [block() for _ in range(layers)]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=like.device)
        self._masks: dict[int, torch.Tensor] = {}

    def restore(self, keys: tuple[torch.Tensor, ...], values: tuple[torch.Tensor, ...], lengths: torch.Tensor) -> None:
        """Starts from saved keys and values (B, G, L, d) by copying them in; the saved tensors stay as they are."""
        for target, source in zip(self.keys + self.values, keys + values, strict=True):
            target[: len(source), :, : source.shape[2]] = source
        self.lengths[: len(lengths)] = lengths

    def saved(self, rows: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], torch.Tensor]:
        """Copies of keys, values and lengths of the first `rows` rows, as `restore` takes them."""
        longest = int(self.lengths[:rows].max())
        keys, values = (tuple(x[:rows, :, :longest].clone() for x in parts) for parts in (self.keys, self.values))
        return keys, values, self.lengths[:rows].clone()

    def attend_by_groups(self, rows: list[int], lengths: list[int], real: list[int], new: int) -> Attend:
        """Attention for `new` tokens of each of `rows`, whose lengths the host knows.

        Equally long neighbours go together; each group sees just the slots it has, so that nothing but the square of
        the new tokens needs a mask, the same for all rows and frames.
        """
        groups: list[_Group] = []
        for number, (row, length, count) in enumerate(zip(rows, lengths, real, strict=True)):
            last = groups[-1] if groups else None
            if last and (last.length, last.real, last.stored + number - last.first) == (length, count, row):
                groups[-1] = _Group(last.first, number + 1, last.stored, length, count)
            else:
                groups.append(_Group(number, number + 1, row, length, count))
        hidden = self._hidden(new)

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            outputs = []
            for group in groups:
                stored = slice(group.stored, group.stored + group.last - group.first)
                batch = slice(group.first, group.last)
                all_keys, all_values = self.keys[layer][stored], self.values[layer][stored]
                end = group.length + new
                all_keys[:, :, group.length : end] = keys[batch]
                all_values[:, :, group.length : end] = values[batch]
                mask = None
                if queries.shape[2] == new:
                    mask = hidden[:, self.capacity - group.length :]
                else:  # the readout alone, the last real token: it sees all there is
                    end = group.length + group.real
                outputs.append(
                    F.scaled_dot_product_attention(
                        queries[batch],
                        all_keys[:, :, :end],
                        all_values[:, :, :end],
                        attn_mask=mask,
                        enable_gqa=queries.shape[1] != keys.shape[1],
                    )
                )
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        return attend

    def _hidden(self, new: int) -> torch.Tensor:
        """What `new` tokens must not see of each other, to be added to scores: (new, capacity + new), of which a row
        with n slots in use takes the last n + new columns."""
        if new not in self._masks:
            like = self.keys[0]
            later = torch.ones(new, new, dtype=torch.bool, device=like.device).triu(1)
            mask = like.new_zeros(new, self.capacity + new)
            mask[:, self.capacity :].masked_fill_(later, -torch.inf)
            self._masks[new] = mask
        return self._masks[new]

    def attend_by_slots(self, slots: torch.Tensor, readout: torch.Tensor, held: torch.Tensor) -> Attend:
        """Attention for new tokens of all rows that go to `slots` (B, q), without asking the device how long rows are.

        readout: (B,) which of them is read out; held: (L,) the numbers 0, 1, ... of the slots that may be in use.
        """
        rows = torch.arange(len(slots), device=slots.device)
        together = max(MASK_ENTRIES // (slots.shape[1] * self.capacity), 1)  # rows whose mask is made at a time

        def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            self.keys[layer][rows[:, None], :, slots] = keys.transpose(1, 2)
            self.values[layer][rows[:, None], :, slots] = values.transpose(1, 2)
            asking = slots if queries.shape[2] == slots.shape[1] else slots[rows, readout][:, None]
            outputs = []
            for first in range(0, len(slots), together):
                part = slice(first, first + together)
                outputs.append(
                    F.scaled_dot_product_attention(
                        queries[part],
                        self.keys[layer][part, :, : len(held)],
                        self.values[layer][part, :, : len(held)],
                        attn_mask=(held <= asking[part, :, None])[:, None],
                        enable_gqa=queries.shape[1] != keys.shape[1],
                    )
                )
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        return attend
