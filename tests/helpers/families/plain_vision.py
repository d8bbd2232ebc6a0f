"""A plain SigLIP forward and plain projectors, written from the tensors' names, to compare natively loaded models with.

Nothing of the package is used; loops instead of packing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]


def part(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _norm(tensors: Tensors, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def _linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def encode(tensors: Tensors, vision: dict[str, Any], x: torch.Tensor, seen: torch.Tensor, layers: int) -> torch.Tensor:
    """x (n, C) through the first `layers` layers; seen (n, n): whether row i may look at column j."""
    heads = vision["num_attention_heads"]
    for number in range(layers):
        name = f"encoder.layers.{number}"
        y = _norm(tensors, f"{name}.layer_norm1", x, 1e-6)
        q, k, v = (_linear(tensors, f"{name}.self_attn.{p}_proj", y).unflatten(1, (heads, -1)) for p in "qkv")
        scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        x = x + _linear(tensors, f"{name}.self_attn.out_proj", torch.einsum("hij,jhd->ihd", weights, v).flatten(1))
        y = _norm(tensors, f"{name}.layer_norm2", x, 1e-6)
        x = x + _linear(tensors, f"{name}.mlp.fc2", F.gelu(_linear(tensors, f"{name}.mlp.fc1", y), approximate="tanh"))
    return x


def positions(tensors: Tensors, sides: list[int]) -> torch.Tensor:
    """Position embeddings for square grids of these many cells a side, one grid after the other."""
    table = tensors["embeddings.position_embedding.weight"]
    own = round(len(table) ** 0.5)
    square = table.T.reshape(1, -1, own, own)
    return torch.cat(
        [
            table if side == own else F.interpolate(square, size=(side, side), mode="bicubic")[0].flatten(1).T
            for side in sides
        ]
    )


def dense_tower(tensors: Tensors, vision: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
    """pixels (F, 3, S, S) -> states before the last layer (F, n, C)."""
    weight, bias = tensors["embeddings.patch_embedding.weight"], tensors["embeddings.patch_embedding.bias"]
    patches = F.conv2d(pixels, weight, bias, stride=vision["patch_size"])
    where = positions(tensors, [patches.shape[-1]])
    tokens = patches.flatten(2).transpose(1, 2) + where
    seen = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    return torch.stack([encode(tensors, vision, frame, seen, vision["num_hidden_layers"] - 1) for frame in tokens])


def gazed_pictures(tensors: Tensors, vision: dict[str, Any], sides: list[int], gazed: Any) -> list[torch.Tensor]:
    """States before the last layer of the kept patches of each picture (n, C), frames first, then thumbnails.

    Block-causal: a patch sees its own frame of its clip and earlier ones. In a picture the tiles follow each other.
    """
    weight = tensors["embeddings.patch_embedding.weight"].flatten(1)
    embedded = gazed.patches @ weight.T + tensors["embeddings.patch_embedding.bias"]
    embedded = embedded + positions(tensors, sides)[gazed.positions]
    found: dict[int, list[torch.Tensor]] = {}
    row = frame = 0
    for frames in gazed.clip_frames.tolist():
        counts = gazed.frame_counts[frame : frame + frames].tolist()
        time = torch.cat([torch.full((count,), t) for t, count in enumerate(counts)])
        states = encode(
            tensors,
            vision,
            embedded[row : row + len(time)],
            time[:, None] >= time[None],
            vision["num_hidden_layers"] - 1,
        )
        for t, picture in enumerate(gazed.pictures[frame : frame + frames].tolist()):
            found.setdefault(picture, []).append(states[time == t])
        row, frame = row + len(time), frame + frames
    return [torch.cat(found[picture]) for picture in sorted(found)]


def join(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """(n, C) -> (ceil(n / count), count * C): neighbours side by side, the last token repeated."""
    rows = list(tokens)
    while len(rows) % count:
        rows.append(rows[-1])
    return torch.stack([torch.cat(rows[start : start + count]) for start in range(0, len(rows), count)])


def windows(tokens: torch.Tensor, k: int, by_columns: bool) -> torch.Tensor:
    """A square picture (n, C) -> its k x k windows (m, k * k * C), zeros beyond its edges."""
    side = round(len(tokens) ** 0.5)
    steps = range(0, side, k)
    corners = [(r, c) for c in steps for r in steps] if by_columns else [(r, c) for r in steps for c in steps]
    blank = torch.zeros_like(tokens[0])
    return torch.stack(
        [
            torch.cat(
                [
                    tokens[(r + dr) * side + c + dc] if r + dr < side and c + dc < side else blank
                    for dr in range(k)
                    for dc in range(k)
                ]
            )
            for r, c in corners
        ]
    )


def project(tensors: Tensors, kind: str, x: torch.Tensor) -> torch.Tensor:
    """Joined tokens through the layers of a projector; keys below `mm_projector.`."""
    if kind == "linear":
        return _linear(tensors, "layers", x)
    if kind == "mlp2x_gelu":
        return _linear(tensors, "layers.2", F.gelu(_linear(tensors, "layers.0", x)))
    if kind in ("mlp_downsample", "mlp_downsample_2x2_fix"):
        return _linear(tensors, "layers.4", F.gelu(_linear(tensors, "layers.2", _norm(tensors, "layers.1", x, 1e-5))))
    y = F.gelu(_linear(tensors, "layers.2", _norm(tensors, "layers.1", x, 1e-5)))
    y = F.gelu(_linear(tensors, "layers.5", _norm(tensors, "layers.4", y, 1e-5)))
    return _linear(tensors, "layers.7", y)
