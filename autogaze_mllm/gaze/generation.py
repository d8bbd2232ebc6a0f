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
from .decoder import GazeDecoder
from .encoder import ConvState
from .engine import FusedDecoder
from .kv_cache import KeyValueCache


@dataclass(frozen=True)
class GazeState:
    """Everything a later call needs to go on where this one stopped. Never written to after it was made.

    keys, values: per layer (B, G, L, d), keys after rotation. lengths: (B,) slots in use of each row.
    unfed: (B, K) ids chosen last and not in the cache yet, real ones first; unfed_counts: (B,) how many are real.
    conv: per trunk block, its last input frames (B, D, history, g, g).
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    lengths: torch.Tensor
    unfed: torch.Tensor
    unfed_counts: torch.Tensor
    conv: ConvState

    def rows(self, rows: slice) -> GazeState:
        """The state of some of the rows."""
        keys, values, conv = (tuple(x[rows] for x in parts) for parts in (self.keys, self.values, self.conv))
        return GazeState(keys, values, self.lengths[rows], self.unfed[rows], self.unfed_counts[rows], conv)


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
    state: GazeState | None


class FrameDecoder:
    """Decodes the frames of one call, one after the other.

    What rows have in store (lengths, budgets, who goes on) is kept on the host where the host can know it: on the CPU,
    and anywhere without a stop rule. Finished rows then leave the batch. With a stop rule on an accelerator it stays on
    the device, and all rows run through all steps, so that nothing waits for the device inside a frame.
    """

    def __init__(
        self,
        decoder: GazeDecoder,
        config: AutoGazeConfig,
        batch: int,
        frames: int,
        max_budget: int,
        state: GazeState | None,
        like: torch.Tensor,
        stops: bool,
    ) -> None:
        self.decoder, self.config = decoder, config
        self.device = like.device
        self.on_host = _host_knows(like.device, stops)
        self.place = torch.device("cpu") if self.on_host else like.device
        step = config.heads_per_step
        held = 0 if state is None else state.keys[0].shape[2]
        shape = config.decoder
        capacity = held + frames * slots_per_frame(config, max_budget) + 2 * step
        self.cache = KeyValueCache(shape.num_hidden_layers, batch, capacity, shape.kv_heads, shape.head_size, like)
        self.unfed = torch.full((batch, step), config.end_id, device=self.device)
        self.unfed_counts = torch.zeros(batch, dtype=torch.long)
        if state is not None:
            self.cache.restore(state.keys, state.values, state.lengths)
            self.unfed, self.unfed_counts = state.unfed.clone(), state.unfed_counts.clone()
        self.fused = FusedDecoder(decoder, capacity)
        self.cache.lengths = self.cache.lengths.to(self.place)
        self.unfed_counts = self.unfed_counts.to(self.place)
        self.longest = held  # upper bound of the row lengths, for rows whose lengths only the device knows

    def _evaluate(
        self, x: torch.Tensor, rows: torch.Tensor, real: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Feeds x (b, q, C) to the cache rows `rows` (b,), of which the first `real` (b,) tokens of each count.
        positions: (b, q) where they are not the slots. -> states (b, C) after the last real token."""
        lengths = self.cache.lengths[rows]
        slots = (lengths[:, None] + torch.arange(x.shape[1], device=self.place)).to(self.device)
        readout = (real - 1).to(self.device)
        if self.on_host:
            attend = self.cache.attend_by_groups(rows.tolist(), lengths.tolist(), real.tolist(), x.shape[1])
        else:
            self.longest = min(self.longest + x.shape[1], self.cache.capacity)
            attend = self.cache.attend_by_slots(slots, readout, self.longest)
        return self.fused(x, slots if positions is None else positions.to(self.device), attend, readout)

    def _prefill(self, vision: torch.Tensor) -> torch.Tensor:
        """Feeds the unfed ids and the frame's vision tokens (B, P, C); returns the readout (B, C).

        Rows with fewer unfed ids carry rubbish at the end, in slots after all that they have.
        """
        prompt, step = vision.shape[1], self.unfed.shape[1]
        waiting = self.unfed_counts.to(self.device)[:, None]
        source = torch.cat([self.decoder.embed(self.unfed), vision], dim=1)
        columns = torch.arange(step + prompt, device=self.device)[None]
        order = (columns + torch.where(columns >= waiting, step - waiting, 0)).clamp(max=step + prompt - 1)
        x = source.gather(1, order[..., None].expand(-1, -1, source.shape[-1]))
        if self.on_host:  # nobody carries more rubbish than the row with most ids needs
            x = x[:, : int(self.unfed_counts.max()) + prompt]
        real = self.unfed_counts + prompt
        readout = self._evaluate(x, torch.arange(len(vision), device=self.place), real)
        self.cache.lengths = self.cache.lengths + real
        return readout

    def frame(
        self,
        vision: torch.Tensor,
        budgets: torch.Tensor,
        requirement: torch.Tensor | None,
        sampling: Sampling | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One frame. vision (B, P, C), budgets (B,) on the host, requirement (B,) on the device or None.

        -> ids (B, n), the same before the stop rule, and the number of entries each row produced (B,).
        """
        step, end = self.config.heads_per_step, self.config.end_id
        batch, device = len(vision), self.device
        steps = -(-int(budgets.max()) // step)
        heads = torch.arange(step, device=self.place)
        if not self.on_host:
            self.longest = int(self.cache.lengths.max())
        readout = self._prefill(vision)
        used = torch.zeros(batch, end + 1, dtype=torch.bool, device=device)
        used[:, end] = True  # the end id is never chosen
        chosen = torch.full((batch, steps * step), end, device=device)
        drawn = chosen.clone()
        entries = torch.zeros(batch, dtype=torch.long, device=self.place)
        rows = torch.arange(batch, device=self.place)  # those still in the batch
        left = budgets.to(self.place)
        prompt_end = self.cache.lengths.clone()
        active = torch.ones(batch, dtype=torch.bool, device=self.place)
        for number in range(steps):
            allowed = active[:, None] & (number * step + heads < left[:, None])  # (b, K)
            picks = self._pick(readout, used, sampling)
            real = allowed
            finished = number * step + step >= left
            if requirement is not None:
                met = self.decoder.task_loss_prediction_head(readout) <= requirement[:, None]
                if number == 0:
                    met[:, 0] = False  # every frame keeps at least one patch
                real = allowed & ~met
                finished = finished | (met & allowed).any(dim=1)
            ids = torch.where(real.to(device), picks, end)
            columns = slice(number * step, number * step + step)
            here = rows.to(device)
            chosen[here, columns] = ids
            drawn[here, columns] = torch.where(allowed.to(device), picks, end)
            entries[rows] += allowed.sum(dim=1)
            stopping = active & finished
            self.unfed[here] = torch.where(stopping.to(device)[:, None], _real_first(ids, end), self.unfed[here])
            self.unfed_counts[rows] = torch.where(stopping, real.sum(dim=1), self.unfed_counts[rows])
            active = active & ~finished
            if number == steps - 1:
                break
            if self.on_host and not bool(active.all()):
                if not bool(active.any()):
                    break
                stay = active.to(device)
                ids, used, requirement = ids[stay], used[stay], None if requirement is None else requirement[stay]
                rows, left, active = rows[active], left[active], active[active]
            # In the published model every step of a frame stands at the positions of the last K prompt slots.
            base = prompt_end[rows] - step if self.config.repeat_step_positions else self.cache.lengths[rows]
            fed = torch.full((len(rows),), step, device=self.place)
            readout = self._evaluate(self.decoder.embed(ids), rows, fed, base[:, None] + heads)
            self.cache.lengths[rows] += step * active
        width = int(entries.max())
        return chosen[:, :width], drawn[:, :width], entries

    def _pick(self, readout: torch.Tensor, used: torch.Tensor, sampling: Sampling | None) -> torch.Tensor:
        """One id per head and row (B, K), none of them in `used` (B, V), which gains the picks."""
        scores = self.decoder.next_ids(readout).masked_fill(used[:, None], -torch.inf)
        if sampling is None and self.device.type == "cpu":
            return _best_of_each(scores, used)
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
            tuple(k[:, :, :longest].clone() for k in self.cache.keys),
            tuple(v[:, :, :longest].clone() for v in self.cache.values),
            self.cache.lengths.to(self.device),
            self.unfed,
            self.unfed_counts.to(self.device),
            conv,
        )


def _host_knows(device: torch.device, stops: bool) -> bool:
    """Whether the host can say, without waiting for the device, how long rows are and which are finished."""
    return not stops or device.type == "cpu"


def slots_per_frame(config: AutoGazeConfig, budget: int) -> int:
    """Cache slots that a frame of at most `budget` patches can take."""
    step = config.heads_per_step
    return config.num_prompt_tokens + -(-budget // step) * step


def _best_of_each(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """What the heads of scores (B, K, V) choose one after the other, none what an earlier one has (`used` gains all).

    All heads choose at once; the first of a row that repeats an earlier choice then chooses again, until none does.
    Two or three rounds are usual, but each asks the device for an answer, so this is for the CPU.
    """
    picks = scores.argmax(dim=-1)
    empty = torch.zeros_like(picks, dtype=torch.bool)  # surplus heads of a complete frame, which will be thrown away
    while True:
        repeats = (picks[:, :, None] == picks[:, None]).tril(-1).any(dim=2) & ~empty
        rows = repeats.any(dim=1).nonzero().squeeze(1)
        if not len(rows):
            break
        heads = repeats[rows].to(torch.uint8).argmax(dim=1)
        row_scores = scores[rows, heads]
        earlier = torch.arange(picks.shape[1]) < heads[:, None]
        taken = torch.zeros_like(row_scores, dtype=torch.uint8).scatter_add_(1, picks[rows], earlier.to(torch.uint8))
        row_scores = row_scores.masked_fill(taken > 0, -torch.inf)
        scores[rows, heads] = row_scores
        picks[rows, heads] = row_scores.argmax(dim=-1)
        empty[rows, heads] = (row_scores == -torch.inf).all(dim=-1)
    used.scatter_(1, picks, True)
    return picks


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
    conv: ConvState | None,
) -> Choices:
    """Decodes all frames of a call. vision: (B, T', P, C); budgets: (B, T'), on the host; requirement: (B, T'). conv:
    the encoder's state, which goes into the state of the result; None: no state is wanted."""
    batch, frames = vision.shape[:2]
    engine = FrameDecoder(
        decoder, config, batch, frames, int(budgets.max()), state, vision, stops=requirement is not None
    )
    ids, drawn, row_counts = [], [], []
    for t in range(frames):
        need = None if requirement is None else requirement[:, t]
        frame_ids, frame_drawn, entries = engine.frame(vision[:, t], budgets[:, t], need, sampling)
        ids.append(frame_ids)
        drawn.append(frame_drawn)
        row_counts.append(entries.to(vision.device))
    return Choices(
        torch.cat(ids, dim=1),
        torch.cat(drawn, dim=1),
        [part.shape[1] for part in ids],
        torch.stack(row_counts, dim=1),
        None if conv is None else engine.state(conv),
    )
