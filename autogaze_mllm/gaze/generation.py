"""Choosing patches frame by frame: decoding with a budget, a stop rule and an explicit streaming state.

The rules are section A.7 of the behaviour specification of the published model, for a batch of one. Rows are decoded
together but never influence each other: each has its own cache length, budget and stopping step.

Shapes: B rows, T' gaze steps ("frames"), P prompt tokens per frame, K ids per evaluation, N patches, id N = end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import InputError
from .config import AutoGazeConfig
from .decoder import GazeDecoder, KeyValueCache
from .encoder import ConvState


@dataclass(frozen=True)
class GazeState:
    """Everything a later call needs to go on where this one stopped. Never written to after it was made.

    keys, values: per layer (B, L, G, d), keys after rotation. lengths: (B,) slots in use of each row.
    unfed: (B, K) ids chosen last and not in the cache yet, real ones first; unfed_counts: (B,) how many are real.
    conv: per trunk block, its last input frames (B, D, history, g, g).
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    lengths: torch.Tensor
    unfed: torch.Tensor
    unfed_counts: torch.Tensor
    conv: ConvState


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. The defaults draw from the model's whole distribution at temperature 1.

    The published training code also keeps only the 50 best ids of each head; give `top_k=50` for that.
    """

    temperature: float = 1.0
    top_k: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature must be above 0 and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")

    def shape(self, scores: torch.Tensor) -> torch.Tensor:
        """Temperature and top-k on scores (..., V); ties with the k-th best stay."""
        scores = scores / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            bound = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < bound, -torch.inf)
        return scores

    def draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        """One id per row of (B, V)."""
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(1)


@dataclass(frozen=True)
class Choices:
    """ids: (B, n) with N where nothing was chosen; drawn: (B, n) the same before the stop rule dropped any; counts:
    entries of each frame; row_counts: (B, T') the row's own."""

    ids: torch.Tensor
    drawn: torch.Tensor
    counts: list[int]
    row_counts: torch.Tensor
    state: GazeState


class FrameDecoder:
    """Decodes the frames of one call, one after the other."""

    def __init__(
        self,
        decoder: GazeDecoder,
        config: AutoGazeConfig,
        batch: int,
        frames: int,
        max_budget: int,
        state: GazeState | None,
        like: torch.Tensor,
    ) -> None:
        self.decoder, self.config = decoder, config
        step = config.heads_per_step
        held = 0 if state is None else state.keys[0].shape[1]
        per_frame = config.num_prompt_tokens + -(-max_budget // step) * step
        shape = config.decoder
        self.cache = KeyValueCache(
            shape.num_hidden_layers, batch, held + frames * per_frame + 2 * step, shape.kv_heads, shape.head_size, like
        )
        self.unfed = torch.full((batch, step), config.end_id, device=like.device)
        self.unfed_counts = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.longest = held  # upper bound of the row lengths, kept on the host
        if state is not None:
            self.cache.restore(state.keys, state.values, state.lengths)
            self.unfed, self.unfed_counts = state.unfed, state.unfed_counts

    def _evaluate(self, x: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.longest = min(self.longest + x.shape[1], self.cache.keys[0].shape[1])
        return self.decoder(x, positions, self.cache.attend_from(slots, self.longest))

    def _prefill(self, vision: torch.Tensor) -> torch.Tensor:
        """Feeds the unfed ids and the frame's vision tokens (B, P, C); returns the readout (B, C).

        Rows with fewer unfed ids carry rubbish at the end, in slots after all that they have.
        """
        prompt, step = vision.shape[1], self.unfed.shape[1]
        source = torch.cat([self.decoder.embed(self.unfed), vision], dim=1)
        columns = torch.arange(step + prompt, device=vision.device)[None].expand(len(vision), -1)
        skipped = (step - self.unfed_counts)[:, None]
        order = columns + torch.where(columns >= self.unfed_counts[:, None], skipped, 0)
        order = order.clamp(max=step + prompt - 1)
        x = source.gather(1, order[..., None].expand(-1, -1, source.shape[-1]))
        slots = self.cache.lengths[:, None] + columns
        states = self._evaluate(x, slots, slots)
        real = self.unfed_counts + prompt
        self.cache.lengths = self.cache.lengths + real
        return states[torch.arange(len(states), device=vision.device), real - 1]

    def frame(
        self,
        vision: torch.Tensor,
        budgets: torch.Tensor,
        steps: int,
        requirement: torch.Tensor | None,
        sampling: Sampling | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One frame. vision (B, P, C), budgets (B,), steps: enough for the largest budget, requirement (B,) or None.

        -> ids (B, steps * K), the same before the stop rule, and the number of entries each row produced (B,).
        """
        step, end = self.config.heads_per_step, self.config.end_id
        batch, device = len(vision), vision.device
        heads = torch.arange(step, device=device)
        self.longest = int(self.cache.lengths.max())
        readout = self._prefill(vision)
        repeated = self.cache.lengths[:, None] - step + heads  # positions of the last K prompt slots
        used = torch.zeros(batch, end + 1, dtype=torch.bool, device=device)
        used[:, end] = True  # the end id is never chosen
        active = torch.ones(batch, dtype=torch.bool, device=device)
        entries = torch.zeros(batch, dtype=torch.long, device=device)
        chosen, drawn = [], []
        for number in range(steps):
            allowed = active[:, None] & (number * step + heads < budgets[:, None])  # (B, K)
            picks = self._pick(readout, used, sampling)
            real = allowed
            finished = number * step + step >= budgets
            if requirement is not None:
                met = self.decoder.task_loss_prediction_head(readout) <= requirement[:, None]
                if number == 0:
                    met[:, 0] = False  # every frame keeps at least one patch
                real = allowed & ~met
                finished = finished | (met & allowed).any(dim=1)
            ids = torch.where(real, picks, end)
            chosen.append(ids)
            drawn.append(torch.where(allowed, picks, end))
            entries = entries + allowed.sum(dim=1)
            stopping = active & finished
            self.unfed = torch.where(stopping[:, None], _real_first(ids, end), self.unfed)
            self.unfed_counts = torch.where(stopping, real.sum(dim=1), self.unfed_counts)
            active = active & ~finished
            last = number == steps - 1
            if last or (requirement is not None and not bool(active.any())):
                break
            slots = self.cache.lengths[:, None] + heads
            positions = repeated if self.config.repeat_step_positions else slots
            readout = self._evaluate(self.decoder.embed(ids), slots, positions)[:, -1]
            self.cache.lengths = self.cache.lengths + step * active
        return torch.cat(chosen, dim=1), torch.cat(drawn, dim=1), entries

    def _pick(self, readout: torch.Tensor, used: torch.Tensor, sampling: Sampling | None) -> torch.Tensor:
        """One id per head and row (B, K), none of them in `used` (B, V), which gains the picks."""
        scores = self.decoder.next_ids(readout).masked_fill(used[:, None], -torch.inf)
        if sampling is not None:
            scores = sampling.shape(scores)
        picks = []
        for head in range(scores.shape[1]):
            row = scores[:, head].masked_fill(used, -torch.inf)
            pick = row.argmax(dim=-1) if sampling is None else sampling.draw(_finite_softmax(row))
            used.scatter_(1, pick[:, None], True)
            picks.append(pick)
        return torch.stack(picks, dim=1)

    def state(self, conv: ConvState) -> GazeState:
        longest = int(self.cache.lengths.max())
        return GazeState(
            tuple(k[:, :longest].clone() for k in self.cache.keys),
            tuple(v[:, :longest].clone() for v in self.cache.values),
            self.cache.lengths,
            self.unfed,
            self.unfed_counts,
            conv,
        )


def _finite_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over (B, V). A row with nothing left (its frame is already complete) draws anything."""
    empty = torch.isinf(scores).all(dim=-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=-1)


def _real_first(ids: torch.Tensor, end: int) -> torch.Tensor:
    """Moves the real ids of every row (B, K) to the front, in order."""
    order = (ids == end).to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order)


def choose_patches(
    decoder: GazeDecoder,
    config: AutoGazeConfig,
    vision: torch.Tensor,
    budgets: torch.Tensor,
    requirement: torch.Tensor | None,
    sampling: Sampling | None,
    state: GazeState | None,
    conv: ConvState,
) -> Choices:
    """Decodes all frames of a call. vision: (B, T', P, C); budgets: (B, T'), on the host; requirement: (B, T')."""
    batch, frames = vision.shape[:2]
    step = config.heads_per_step
    engine = FrameDecoder(decoder, config, batch, frames, int(budgets.max()), state, vision)
    ids, drawn, counts, row_counts = [], [], [], []
    on_device = budgets.to(vision.device)
    for t in range(frames):
        steps = -(-int(budgets[:, t].max()) // step)
        need = None if requirement is None else requirement[:, t]
        frame_ids, frame_drawn, entries = engine.frame(vision[:, t], on_device[:, t], steps, need, sampling)
        count = int(entries.max()) if requirement is not None else int(budgets[:, t].max())
        ids.append(frame_ids[:, :count])
        drawn.append(frame_drawn[:, :count])
        counts.append(count)
        row_counts.append(entries)
    return Choices(
        torch.cat(ids, dim=1), torch.cat(drawn, dim=1), counts, torch.stack(row_counts, dim=1), engine.state(conv)
    )
