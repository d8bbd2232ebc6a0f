"""The published gaze model, written plainly and slowly: dense masks, caches by concatenation, coupled rows.

It is independent of `autogaze_mllm.gaze`: it takes the published config.json layout and a state dict, nothing else.
A batch behaves as in the published code, where the later frames of a row that stops early depend on whether another
row goes on. With a batch of one it says what the package must give for that row in any batch.

Shapes: B rows, T frames, P vision tokens of a frame, K ids per evaluation, N patches (id N = end), L cached slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@dataclass(frozen=True)
class State:
    """keys, values: per layer (B, Hkv, L, d); mask: (B, L + unfed) 1 = visible; unfed: (B, u, C); conv: per block."""

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    unfed: Tensor
    conv: list[Tensor]


@dataclass
class Evaluation:
    """One run of the decoder. ids: None for a prefill. logits: (B, K, V), losses: (B, K) at its readout."""

    positions: Tensor
    mask: Tensor
    ids: Tensor | None
    logits: Tensor
    losses: Tensor


@dataclass
class Result:
    """ids: (B, n) with N where padded. margin: smallest gap that decided an id or a stop."""

    ids: Tensor
    counts: list[int]
    state: State
    evaluations: list[Evaluation] = field(default_factory=list)
    margin: float = math.inf


@dataclass(frozen=True)
class Guide:
    """Reward-guided decoding, which is not published: weight * ln(gain) is added to a patch's score, and a frame ends
    once its measured loss is not above the requirement or no patch gains. measure: of the ids kept in each frame so
    far, the gain (N,) of every patch in the last one and the loss of the picture. For one row."""

    weight: float
    measure: Callable[[list[list[int]]], tuple[Tensor, float]]
    least: float = 1e-6  # what a patch must bring

    def worth(self, kept: list[list[int]], requirement: float | None) -> tuple[Tensor, bool, float]:
        """-> what is added to the scores (N,), whether the frame is done, and by how much that was decided."""
        gain, loss = self.measure(kept)
        best = float(gain.max())
        gap = abs(best - self.least) if requirement is None else min(abs(best - self.least), abs(loss - requirement))
        done = best <= self.least or (requirement is not None and loss <= requirement)
        worth = self.weight * gain.clamp(min=1e-6).log()
        if best > self.least:
            worth[gain <= self.least] = -math.inf
        return worth, done and bool(kept[-1]), gap if kept[-1] else math.inf


def cubic_weights(size_in: int, size_out: int) -> Tensor:
    """(out, in) matrix of a bicubic resize along one axis: a = -0.75, half-pixel centres, edges repeated."""
    a, weights = -0.75, torch.zeros(size_out, size_in)
    centre = (torch.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    for j in range(size_out):
        first = math.floor(centre[j])
        for tap in range(first - 1, first + 3):
            t = abs(float(centre[j]) - tap)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            weights[j, min(max(tap, 0), size_in - 1)] += near if t <= 1 else far
    return weights


class Reference:
    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        model = config["gaze_model_config"]
        self.vision, self.shape = model["vision_model_config"], model["gaze_decoder_config"]
        self.side = model["input_img_size"]
        self.prompt = (self.side // self.vision["kernel_size"]) ** 2
        self.size = config["num_vision_tokens_each_frame"]
        self.width = self.shape["hidden_size"]
        self.step = self.shape["num_multi_token_pred"]
        self.heads = self.shape["num_attention_heads"]
        self.kv_heads = self.shape.get("num_key_value_heads") or self.heads
        self.dim = self.shape.get("head_dim") or self.width // self.heads
        self.repeat_positions = config.get("repeat_step_positions", True)  # False is not published
        self.weights = {key.removeprefix("gazing_model."): value for key, value in weights.items()}
        self.embedding = self.weights["gaze_decoder.model.embed_tokens.weight"]

    # Vision encoder

    def encode(self, video: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """(B, T, 3, H, W) -> tokens (B, T', P, C) and the last input frames of every block."""
        w, cfg = self.weights, self.vision
        if video.shape[-2:] != (self.side, self.side):
            rows, columns = (cubic_weights(size, self.side) for size in video.shape[-2:])
            video = rows @ video @ columns.T
        patch = (cfg["temporal_patch_size"], cfg["kernel_size"], cfg["kernel_size"])
        name = "vision_model.temporal_conv."
        x = F.conv3d(video.transpose(1, 2), w[name + "weight"], w[name + "bias"], stride=patch)
        name = "vision_model.norm."
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2], w[name + "weight"], w[name + "bias"], 1e-5).movedim(-1, 1)
        front, edge = cfg["trunk_temporal_kernel_size"] - 1, cfg["trunk_spatial_kernel_size"] // 2
        conv = []
        for block in range(cfg["depth"]):
            name = f"vision_model.blocks.{block}.conv3d."
            before = x.new_zeros(*x.shape[:2], front, *x.shape[3:]) if past is None else past[block]
            x = torch.cat([before, x], dim=2)
            conv.append(x[:, :, x.shape[2] - front :])
            x = F.relu(F.conv3d(x, w[name + "weight"], w[name + "bias"], padding=(0, edge, edge)))
        name = "vision_model.out_proj."
        x = F.conv3d(x, w[name + "weight"], w[name + "bias"])
        return x.movedim(1, -1).flatten(2, 3) + w["connector.pos_embed"], conv

    # Decoder

    def frequencies(self) -> Tensor:
        base = [self.shape["rope_theta"] ** (-2 * i / self.dim) for i in range(self.dim // 2)]
        scaling = self.shape.get("rope_scaling")
        if not scaling:
            return torch.tensor(base)
        old, factor = scaling["original_max_position_embeddings"], scaling["factor"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        result = []
        for f in base:
            turns = old * f / (2 * math.pi)
            share = min(max((turns - low) / (high - low), 0.0), 1.0)
            result.append((1 - share) * f / factor + share * f)
        return torch.tensor(result)

    def rms(self, x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.shape["rms_norm_eps"]).sqrt()
        return self.weights[f"gaze_decoder.model.{name}.weight"] * x / scale

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        angle = positions[:, None, :, None] * self.frequencies()
        half = self.dim // 2
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)

    def feed(self, x: Tensor, positions: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """Runs embeddings (B, q, C) through the layers; mask: (B, L + q). -> final states (B, q, C), grown caches."""
        w, new, total = self.weights, x.shape[1], mask.shape[1]
        causal = torch.arange(total)[None] <= torch.arange(total - new, total)[:, None]
        hidden = ~(causal[None] & mask[:, None].bool())[:, None]
        keys, values = [], []
        for layer in range(self.shape["num_hidden_layers"]):
            name = f"layers.{layer}"
            y = self.rms(x, f"{name}.input_layernorm")
            q, k, v = (
                (y @ w[f"gaze_decoder.model.{name}.self_attn.{kind}_proj.weight"].T)
                .unflatten(-1, (-1, self.dim))
                .transpose(1, 2)
                for kind in "qkv"
            )
            keys.append(torch.cat([state.keys[layer], self.rotate(k, positions)], dim=2))
            values.append(torch.cat([state.values[layer], v], dim=2))
            k, v = (z.repeat_interleave(self.heads // self.kv_heads, dim=1) for z in (keys[-1], values[-1]))
            scores = self.rotate(q, positions) @ k.transpose(2, 3) / math.sqrt(self.dim)
            mixed = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
            x = x + mixed.transpose(1, 2).flatten(2) @ w[f"gaze_decoder.model.{name}.self_attn.o_proj.weight"].T
            y = self.rms(x, f"{name}.post_attention_layernorm")
            mlp = f"gaze_decoder.model.{name}.mlp."
            gate, up, down = (w[f"{mlp}{kind}_proj.weight"].T for kind in ("gate", "up", "down"))
            x = x + (F.silu(y @ gate) * (y @ up)) @ down
        return self.rms(x, "norm"), replace(state, keys=keys, values=values)

    def logits(self, states: Tensor) -> Tensor:
        """(..., C) -> (..., K, V)."""
        return (states @ self.weights["gaze_decoder.lm_head.weight"].T).unflatten(-1, (self.step, self.size + 1))

    def losses(self, states: Tensor) -> Tensor:
        """(..., C) -> (..., K)."""
        return states @ self.weights["gaze_decoder.task_loss_prediction_head.weight"].T

    def empty(self, batch: int) -> State:
        none = [torch.zeros(batch, self.kv_heads, 0, self.dim) for _ in range(self.shape["num_hidden_layers"])]
        mask, unfed = torch.zeros(batch, 0, dtype=torch.long), torch.zeros(batch, 0, self.width)
        return State(none, none, mask, unfed, [])

    # Generation

    def generate(
        self,
        video: Tensor,
        budgets: Sequence[int],
        requirement: Tensor | None = None,
        state: State | None = None,
        guide: Guide | None = None,
    ) -> Result:
        """Greedy. budgets: patches of each frame; requirement: (B, T') or None. guide: with one row only."""
        tokens, conv = self.encode(video, None if state is None else state.conv)
        state = replace(state or self.empty(len(video)), conv=conv)
        result = Result(torch.zeros(len(video), 0, dtype=torch.long), [], state)
        for t in range(tokens.shape[1]):
            self._frame(result, tokens[:, t], budgets[t], None if requirement is None else requirement[:, t], guide)
        return result

    def _evaluate(self, result: Result, x: Tensor, positions: Tensor, mask: Tensor, ids: Tensor | None) -> Evaluation:
        states, result.state = self.feed(x, positions, mask, result.state)
        readout = states[:, -1]
        result.evaluations.append(Evaluation(positions, mask, ids, self.logits(readout), self.losses(readout)))
        return result.evaluations[-1]

    def _frame(
        self, result: Result, vision: Tensor, budget: int, requirement: Tensor | None, guide: Guide | None
    ) -> None:
        batch, end = len(vision), self.size
        mask = torch.cat([result.state.mask, torch.ones(batch, self.prompt, dtype=torch.long)], dim=1)
        positions = mask.cumsum(1) - 1
        x = torch.cat([result.state.unfed, vision], dim=1)
        here = self._evaluate(result, x, positions[:, -x.shape[1] :], mask, None)
        repeated = positions[:, -self.step :]
        given = torch.zeros(batch, 0, dtype=torch.long)
        finished = torch.zeros(batch, dtype=torch.bool)
        while True:
            scores = here.logits.clone()
            for row in range(batch):
                scores[row][:, given[row]] = -math.inf
            scores[:, :, end] = -math.inf
            first, chosen, stopped, measured = given.shape[1], [], False, []
            for head in range(self.step):
                if first + head >= budget or bool(scores[:, head].isinf().all()):
                    stopped = True
                    break
                if guide is not None:
                    new = [int(i) for i, done in zip(chosen, measured, strict=True) if not done]
                    frames = [*result.ids[0].split(result.counts), torch.cat([given[0], torch.tensor(new).long()])]
                    wanted = None if requirement is None else float(requirement[0])
                    worth, done, gap = guide.worth([ids[ids != end].tolist() for ids in frames], wanted)
                    scores[0, head, :end] += worth
                    measured.append(done or any(measured))
                    result.margin = min(result.margin, gap)
                best = scores[:, head].argmax(-1)
                result.margin = min(result.margin, _gap(scores[:, head][~finished]))
                for row in range(batch):
                    scores[row, head + 1 :, best[row]] = -math.inf
                chosen.append(best)
            ids = torch.stack(chosen, dim=1).masked_fill(finished[:, None], end)
            now = finished.clone()
            if guide is not None:
                ids = ids.masked_fill(torch.tensor(measured)[None], end)
                now |= torch.tensor([any(measured)])
            elif requirement is not None:
                gaps = here.losses[:, : len(chosen)] - requirement[:, None]
                met = gaps <= 0
                if first == 0:
                    met[:, 0], gaps[:, 0] = False, math.inf
                result.margin = min(result.margin, float(gaps[~finished].abs().min()))
                ids = ids.masked_fill(met, end)
                now |= met.any(1)
            given = torch.cat([given, ids], dim=1)
            finished = now
            if stopped or given.shape[1] >= budget or bool(finished.all()):
                break
            everything = torch.cat([mask, torch.ones_like(given)], dim=1)
            fed = repeated if self.repeat_positions else everything.cumsum(1)[:, -self.step :] - 1
            here = self._evaluate(result, self.embedding[ids], fed, everything, ids)
        result.ids = torch.cat([result.ids, given], dim=1)
        result.counts.append(given.shape[1])
        full = torch.cat([mask, (given != end).long()], dim=1)
        result.state = replace(result.state, mask=full, unfed=self.embedding[ids])

    # Scoring

    def score(self, video: Tensor, ids: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """ids: (B, n) within the frame, N where padded -> published log-probabilities and predicted losses (B, n)."""
        tokens, _ = self.encode(video, None)
        parts, visible, slots, ranks = [], [], [], []
        for t, frame_ids in enumerate(ids.split(list(counts), dim=1)):
            start = sum(part.shape[1] for part in parts) + self.prompt
            parts += [tokens[:, t], self.embedding[frame_ids]]
            visible += [torch.ones(len(ids), self.prompt, dtype=torch.long), (frame_ids != self.size).long()]
            slots += range(start, start + counts[t])
            ranks += range(counts[t])
        mask = torch.cat(visible, dim=1)
        states, _ = self.feed(torch.cat(parts, dim=1), mask.cumsum(1) - 1, mask, self.empty(len(ids)))
        log_probs, losses = torch.zeros(ids.shape), torch.zeros(ids.shape)
        for j, (slot, rank) in enumerate(zip(slots, ranks, strict=True)):
            head = rank % self.step
            readout = states[:, slot - head - 1]
            probability = self.logits(readout)[:, head].softmax(-1).gather(1, ids[:, j : j + 1])[:, 0]
            log_probs[:, j] = (probability + 1e-8).log()
            last = head + 1 == self.step
            losses[:, j] = self.losses(states[:, slot])[:, 0] if last else self.losses(readout)[:, head + 1]
        return log_probs, losses


def assert_rows(info: Any, alone: Sequence[Result], size: int) -> None:
    """A batched selection holds in every row what the reference gives for that row alone."""
    per_row = [result.ids[0].split(result.counts) for result in alone]
    frames = [torch.nn.utils.rnn.pad_sequence(parts, True, size) for parts in zip(*per_row, strict=True)]
    expected = torch.cat([ids + size * t for t, ids in enumerate(frames)], dim=1)
    assert info.num_gazing_each_frame.tolist() == [ids.shape[1] for ids in frames]
    assert info.num_gazing_each_row.tolist() == [result.counts for result in alone]
    assert torch.equal(info.gazing_pos, expected)
    assert torch.equal(info.if_padded_gazing, torch.cat(frames, dim=1) == size)


def assert_state(state: Any, alone: Sequence[Result], embedding: Tensor, tolerance: float) -> None:
    """A streaming state holds, row by row, what the reference keeps and does not hide."""
    for row, result in enumerate(alone):
        want, held = result.state, result.state.keys[0].shape[2]
        kept, unfed = want.mask[0, :held].bool(), want.mask[0, held:].bool()
        length, waiting = int(state.lengths[row]), int(state.unfed_counts[row])
        assert (length, waiting) == (int(kept.sum()), int(unfed.sum()))
        assert torch.equal(embedding[state.unfed[row, :waiting]], want.unfed[0][unfed])
        pairs = list(zip(state.conv, want.conv, strict=True))
        pairs = [(mine[row], theirs[0]) for mine, theirs in pairs]
        for mine, theirs in zip(state.keys + state.values, want.keys + want.values, strict=True):
            pairs.append((mine[row, :, :length], theirs[0][:, kept]))
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def _gap(scores: Tensor) -> float:
    """Smallest distance between the best and the second best of the rows (B, V)."""
    two = scores.topk(2, dim=-1).values
    return float((two[:, 0] - two[:, 1]).min())
