"""Teacher-forced pass: log-probabilities and predicted losses of a given selection.

docs/specification.md, "Scoring", says what they are.

Shapes: B rows, n selected entries over all frames, S sequence slots, K ids per step, V ids, id N = end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import AutoGazeConfig
from .decoder import GazeDecoder, causal_attention
from .decoding.generation import Sampling


@dataclass(frozen=True)
class GivenIds:
    """ids: (B, n), N where padded; drawn: (B, n) with what the stop rule dropped (it still kept later heads of its step
    from drawing the same); counts: entries of each frame; row_counts: (B, T') entries that the row produced."""

    ids: torch.Tensor
    drawn: torch.Tensor
    counts: list[int]
    row_counts: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """Where things are in the sequence vision_0, ids_0, vision_1, ids_1, ...

    blocks: (start, end) of each frame; slot: (n,) slot of each id; rank: (n,) its number within its frame.
    """

    blocks: list[tuple[int, int]]
    slot: torch.Tensor
    rank: torch.Tensor

    @classmethod
    def of(cls, counts: list[int], prompt: int, device: torch.device) -> Layout:
        blocks, slots, ranks, start = [], [], [], 0
        for count in counts:
            blocks.append((start, start + prompt + count))
            ranks.append(torch.arange(count, device=device))
            slots.append(start + prompt + ranks[-1])
            start += prompt + count
        return cls(blocks, torch.cat(slots), torch.cat(ranks))


def _positions(
    config: AutoGazeConfig, given: GivenIds, layout: Layout, mask: torch.Tensor, as_generated: bool
) -> torch.Tensor:
    """Positions (B, S): cumulative over visible slots, or those that generation used.

    Generation fed every step of a frame but the row's last at the positions of the last K prompt slots.
    """
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    if not (as_generated and config.repeat_step_positions):
        return positions
    step = config.heads_per_step
    for t, (start, end) in enumerate(layout.blocks):
        first = start + config.num_prompt_tokens
        rank = torch.arange(end - first, device=mask.device)
        repeated = positions[:, first - 1 :][:, :1] - step + 1 + rank % step
        last_step = (given.row_counts[:, t] - 1) // step
        fed_inside = rank[None] // step < last_step[:, None]
        positions[:, first:end] = torch.where(fed_inside, repeated, positions[:, first:end])
    return positions


def score_ids(
    decoder: GazeDecoder,
    config: AutoGazeConfig,
    vision: torch.Tensor,
    given: GivenIds,
    sampling: Sampling | None,
    targets: torch.Tensor | None = None,
    rewards: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-> log-probabilities (B, n) and predicted losses (B, n).

    sampling None: the published definition, ln(p + 1e-8) with p over all N + 1 ids, positions counted on. With a
    Sampling: ln p of the very distribution that `generate` draws from (used ids and the end id banned, temperature,
    top-k, generation's positions); 0 where padded. targets: (B, n, N) probabilities over the patches that stand for
    each entry, for training on more than the one choice; with them and a Sampling, the expected ln p. rewards:
    (B, n, N) what each patch is worth; with a Sampling, their mean under p is added. Predicted losses are those after
    the entry, as the model's heads give them.
    """
    batch, frames = vision.shape[:2]
    prompt, step, end_id = config.num_prompt_tokens, config.heads_per_step, config.end_id
    layout = Layout.of(given.counts, prompt, vision.device)
    embedded = decoder.embed(given.ids).split(given.counts, dim=1)
    sequence = torch.cat([part for t in range(frames) for part in (vision[:, t], embedded[t])], dim=1)
    mask = torch.ones(batch, sequence.shape[1], dtype=torch.bool, device=vision.device)
    mask[:, layout.slot] = given.ids != end_id
    positions = _positions(config, given, layout, mask, as_generated=sampling is not None)
    dropout = config.decoder.attention_dropout if decoder.training else 0.0
    states = decoder(sequence, positions, causal_attention(mask, dropout))

    head = layout.rank % step
    readouts = states[:, layout.slot - head - 1]  # (B, n, C): the last slot of the previous step
    log_probs = states.new_zeros(given.ids.shape, dtype=torch.float32)
    for number in range(step):
        columns = (head == number).nonzero().squeeze(1)
        logits = decoder.head_logits(readouts[:, columns], number).float()
        wanted = given.ids[:, columns, None]
        if sampling is None:
            log_p = (logits.log_softmax(-1).gather(-1, wanted).exp() + 1e-8).log()
        else:
            banned, taken_in_step = _used_before(given, columns, layout.rank[columns] - number, end_id)
            # As in generation: top-k looks at what was free before the step, the ban within the step comes after.
            logits = sampling.shape(logits.masked_fill(banned, -torch.inf)).masked_fill(taken_in_step, -torch.inf)
            of_all = logits.log_softmax(-1)
            log_p = _expected(of_all, wanted, None if targets is None else targets[:, columns])
            if rewards is not None:
                log_p = log_p + _mean_reward(of_all, rewards[:, columns])
            log_p = log_p.masked_fill(wanted == end_id, 0.0)
        log_probs = log_probs.index_copy(1, columns, log_p.squeeze(-1))

    # The loss after entry j is head r + 1 at the same readout, or head 0 at the entry itself for the last of a step.
    source = torch.where(head == step - 1, layout.slot, layout.slot - head - 1)
    predictions = decoder.task_loss_prediction_head(states[:, source])
    next_head = ((head + 1) % step)[None, :, None].expand(batch, -1, 1)
    return log_probs, predictions.gather(2, next_head).squeeze(2).float()


def _expected(log_p: torch.Tensor, wanted: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Log-probabilities (B, c, V) at `wanted` (B, c, 1), or averaged over `targets` (B, c, N): (B, c, 1)."""
    if targets is None:
        return log_p.gather(-1, wanted)
    log_p = log_p[..., : targets.shape[-1]]
    return torch.where(targets > 0, targets * log_p, 0.0).sum(dim=-1, keepdim=True)


def _mean_reward(log_p: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (B, c, N) averaged over the probabilities exp(log_p) (B, c, V): (B, c, 1)."""
    return (log_p[..., : rewards.shape[-1]].exp() * rewards).sum(dim=-1, keepdim=True)


def _used_before(
    given: GivenIds, columns: torch.Tensor, step_start: torch.Tensor, end_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What could not be chosen at each of `columns`: before its step began, and within the step. Both (B, c, V) bool.

    columns: (c,) entries that share a head; step_start: (c,) rank at which the step of each began.
    """
    ids = given.ids
    counts = torch.tensor(given.counts, device=ids.device)
    frame_start = counts.cumsum(0) - counts
    frames = torch.arange(len(counts), device=ids.device).repeat_interleave(counts, output_size=ids.shape[1])
    ranks = torch.arange(ids.shape[1], device=ids.device) - frame_start[frames]
    # When each id was first drawn in its frame; two comparisons then answer for all columns at once.
    never = ids.shape[1]
    first = torch.full((len(ids), len(given.counts) * (end_id + 1)), never, device=ids.device)
    first = first.scatter_reduce(1, given.drawn + frames * (end_id + 1), ranks.expand_as(ids), "amin")
    first = first.unflatten(1, (len(given.counts), -1))[:, frames[columns]]
    before = first < step_start[:, None]
    within = ~before & (first < ranks[columns][:, None])
    before[..., end_id] = True
    within[..., end_id] = True
    # A padded entry was never drawn; leaving it something keeps the softmax finite (its value is replaced by 0).
    padded = (ids[:, columns] == end_id)[..., None]
    return before & ~padded, within & ~padded
