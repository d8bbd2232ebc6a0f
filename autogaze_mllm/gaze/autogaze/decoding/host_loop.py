"""The frames of a call, decoded on the CPU, where looking at numbers costs nothing."""

from __future__ import annotations

import torch

from ...pictures.gains import ALL
from ..config import AutoGazeConfig
from ..decoder import GazeDecoder
from ..encoder import ConvState
from .fused_decoder import FusedDecoder
from .guidance import Guide, Watched
from .kv_cache import KeyValueCache
from .sampling import Sampling, pick, real_first, unfed_first
from .state import GazeState


class HostFrames:
    """Decodes the frames of one call on the CPU, one after the other; `DeviceFrames` does it elsewhere.

    Lengths, budgets and who goes on can be looked at at no cost, so finished rows leave the batch at every step.
    """

    def __init__(
        self,
        decoder: GazeDecoder,
        config: AutoGazeConfig,
        batch: int,
        capacity: int,
        like: torch.Tensor,
        watched: Watched | None = None,
    ) -> None:
        self.config = config
        shape = config.decoder
        self.cache = KeyValueCache(shape.num_hidden_layers, batch, capacity, shape.kv_heads, shape.head_size, like)
        self.unfed = torch.full((batch, config.heads_per_step), config.end_id)
        self.unfed_counts = torch.zeros(batch, dtype=torch.long)
        self.fused = FusedDecoder(decoder, capacity)
        self.guide = None if watched is None else Guide(watched.guidance, batch, like.device)
        if self.guide is not None and watched is not None:
            self.guide.begin(watched)

    def restore(self, state: GazeState) -> None:
        self.cache.restore(state.keys, state.values, state.lengths)
        self.unfed, self.unfed_counts = state.unfed.clone(), state.unfed_counts.clone()

    def _evaluate(
        self, x: torch.Tensor, rows: torch.Tensor, real: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Feeds x (b, q, C) to the cache rows `rows` (b,), of which the first `real` (b,) tokens of each count.
        positions: (b, q) where they are not the slots. -> states (b, C) after the last real token."""
        lengths = self.cache.lengths[rows]
        attend = self.cache.attend_by_groups(rows.tolist(), lengths.tolist(), real.tolist(), x.shape[1])
        if positions is None:
            positions = lengths[:, None] + torch.arange(x.shape[1])
        return self.fused(x, positions, attend, real - 1)

    def _prefill(self, vision: torch.Tensor) -> torch.Tensor:
        """Feeds the unfed ids and the frame's vision tokens (B, P, C); returns the readout (B, C)."""
        source = torch.cat([self.fused.embed(self.unfed), vision], dim=1)
        x = unfed_first(source, self.unfed_counts, self.unfed.shape[1])
        x = x[:, : int(self.unfed_counts.max()) + vision.shape[1]]  # no more padding than the fullest row needs
        real = self.unfed_counts + vision.shape[1]
        readout = self._evaluate(x, torch.arange(len(vision)), real)
        self.cache.lengths = self.cache.lengths + real
        return readout

    def frame(
        self,
        vision: torch.Tensor,
        budgets: torch.Tensor,
        loss_threshold: torch.Tensor | None,
        sampling: Sampling | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One frame. vision (B, P, C), budgets (B,), loss_threshold (B,) or None.

        -> ids (B, n), the same before the stop rule, and the number of entries each row produced (B,).
        """
        step, end = self.config.heads_per_step, self.config.end_id
        batch = len(vision)
        steps = -(-int(budgets.max()) // step)
        heads = torch.arange(step)
        readout = self._prefill(vision)
        if self.guide is not None:
            self.guide.next_frame()
        used = torch.zeros(batch, end + 1, dtype=torch.bool)
        used[:, end] = True  # the end id is never chosen
        chosen = torch.full((batch, steps * step), end)
        drawn = chosen.clone()
        entries = torch.zeros(batch, dtype=torch.long)
        rows, left = torch.arange(batch), budgets  # of those still in the batch
        prompt_end = self.cache.lengths.clone()
        for number in range(steps):
            allowed = number * step + heads < left[:, None]  # (b, K)
            picks, met = self._choose(readout, used, allowed, loss_threshold, sampling, rows, number > 0)
            real, finished = allowed, number * step + step >= left
            if met is not None:
                real = allowed & ~met
                finished = finished | (met & allowed).any(dim=1)
            ids = torch.where(real, picks, end)
            columns = slice(number * step, number * step + step)
            chosen[rows, columns] = ids
            drawn[rows, columns] = torch.where(allowed, picks, end)
            entries[rows] += allowed.sum(dim=1)
            leaving = rows[finished]
            self.unfed[leaving] = real_first(ids[finished], end)
            self.unfed_counts[leaving] = real[finished].sum(dim=1)
            stay = ~finished
            if not bool(stay.any()):
                break
            if bool(finished.any()):
                ids, used, loss_threshold = (
                    ids[stay],
                    used[stay],
                    None if loss_threshold is None else loss_threshold[stay],
                )
                rows, left = rows[stay], left[stay]
            # In the published model every step of a frame stands at the positions of the last K prompt slots.
            base = prompt_end[rows] - step if self.config.repeat_step_positions else self.cache.lengths[rows]
            fed = torch.full((len(rows),), step)
            readout = self._evaluate(self.fused.embed(ids), rows, fed, base[:, None] + heads)
            self.cache.lengths[rows] += step
        if self.guide is not None:
            self.guide.finish()
        width = int(entries.max())
        return chosen[:, :width], drawn[:, :width], entries

    def _choose(
        self,
        readout: torch.Tensor,
        used: torch.Tensor,
        allowed: torch.Tensor,
        loss_threshold: torch.Tensor | None,
        sampling: Sampling | None,
        rows: torch.Tensor,
        started: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """-> picks of the heads (b, K), and whether the stop rule was met before each (None: there is no rule)."""
        scores, met = self.fused.next_ids(readout), None
        if loss_threshold is not None and not (self.guide and self.guide.guidance.measures_loss):
            met = self.fused.losses(readout) <= loss_threshold[:, None]
            if not started:
                met[:, 0] = False  # every frame keeps at least one patch
            loss_threshold, allowed = None, allowed & ~met
        if self.guide is None:
            return pick(scores, used, sampling, on_host=True), met
        some = ALL if len(rows) == len(self.unfed) else rows
        picks, done = self.guide.choose(scores, used, allowed, loss_threshold, started, some)
        return picks, done if met is None else met | done

    def state(self, conv: ConvState) -> GazeState:
        canvas = None if self.guide is None else self.guide.canvas
        return GazeState(*self.cache.saved(len(self.unfed)), self.unfed, self.unfed_counts, conv, canvas)
