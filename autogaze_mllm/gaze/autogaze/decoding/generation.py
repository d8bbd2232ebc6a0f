"""Choosing patches frame by frame: decoding with a budget, a stop rule and an explicit streaming state.

The rules are in docs/specification.md, "Generation". Rows are decoded together but never influence each other: each has
its own cache length, budget and stopping step.

Shapes: B rows, T' gaze steps ("frames"), P prompt tokens per frame, K ids per evaluation, N patches, id N = end.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import get_args

import torch

from ....common.errors import InputError
from ..config import AutoGazeConfig
from ..decoder import GazeDecoder
from ..encoder import ConvState
from .cuda_graphs import Capture
from .device_loop import DeviceFrames, borrowed
from .guidance import Watched
from .host_loop import HostFrames
from .sampling import Sampling
from .state import GazeState


@dataclass(frozen=True)
class Choices:
    """ids: (B, n) with N where nothing was chosen; drawn: (B, n) the same before the stop rule dropped any; counts:
    entries of each frame; row_counts: (B, T') the row's own."""

    ids: torch.Tensor
    drawn: torch.Tensor
    counts: list[int]
    row_counts: torch.Tensor
    state: GazeState | None


def slots_per_frame(config: AutoGazeConfig, budget: int) -> int:
    """Cache slots that a frame of at most `budget` patches can take."""
    step = config.heads_per_step
    return config.num_prompt_tokens + -(-budget // step) * step


def _on_host(device: torch.device, capture: Capture | None) -> bool:
    return device.type == "cpu" and capture in (None, "off")


def choose_patches(
    decoder: GazeDecoder,
    config: AutoGazeConfig,
    vision: torch.Tensor,
    budgets: torch.Tensor,
    loss_threshold: torch.Tensor | None,
    sampling: Sampling | None,
    state: GazeState | None,
    conv: ConvState | None,
    capture: Capture | None = None,
    watched: Watched | None = None,
) -> Choices:
    """Decodes all frames of a call. vision: (B, T', P, C); budgets: (B, T'), on the host; loss_threshold: (B, T').
    conv: the encoder's state, which goes into the state of the result; None: no state is wanted. capture: see
    `Capture`. watched: what a guided call looks at."""
    frames = vision.shape[1]
    held = 0 if state is None else state.keys[0].shape[2]
    most = int(budgets.max())
    capacity = held + frames * slots_per_frame(config, most) + 2 * config.heads_per_step
    if capture not in (None, *get_args(Capture)):
        raise InputError(f"unknown capture {capture!r}; known: {', '.join(get_args(Capture))}")
    if sampling is not None:
        capture = "off"
    engine: HostFrames | DeviceFrames
    with contextlib.ExitStack() as stack:
        if _on_host(vision.device, capture):
            engine = HostFrames(decoder, config, len(vision), capacity, vision, watched)
        else:
            engine = stack.enter_context(
                borrowed(decoder, config, len(vision), capacity, most, vision, capture, watched)
            )
        if state is not None:
            engine.restore(state)
        ids, drawn, row_counts = [], [], []
        for t in range(frames):
            frame_threshold = None if loss_threshold is None else loss_threshold[:, t]
            frame_ids, frame_drawn, entries = engine.frame(vision[:, t], budgets[:, t], frame_threshold, sampling)
            ids.append(frame_ids)
            drawn.append(frame_drawn)
            row_counts.append(entries.to(vision.device))
        kept = None if conv is None else engine.state(conv)
    return Choices(
        torch.cat(ids, dim=1),
        torch.cat(drawn, dim=1),
        [part.shape[1] for part in ids],
        torch.stack(row_counts, dim=1),
        kept,
    )
