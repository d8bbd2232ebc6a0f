"""Many clips at once: how many fit in memory together, and joining what the pieces of a batch give.

Rows never influence each other, so a batch may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ....common.errors import InputError
from ..config import AutoGazeConfig
from .generation import Choices, GazeState, slots_per_frame

INDEXABLE = 2**31 - 1  # numbers of a tensor that every kernel of a GPU can count
HOST_BYTES = 512 << 20  # working set of a call on the CPU; larger ones are not faster


def bytes_per_row(config: AutoGazeConfig, frames: int, budget: int, width: int) -> int:
    """Estimate of what decoding a row of `frames` gaze steps holds: the cache, the encoder's maps, one prefill.
    width: bytes of a number."""
    decoder, encoder = config.decoder, config.encoder
    prompt = config.num_prompt_tokens
    cache = 2 * decoder.num_hidden_layers * decoder.kv_heads * decoder.head_size
    cache *= frames * slots_per_frame(config, budget) + 2 * config.heads_per_step
    pixels = frames * encoder.temporal_patch_size * 3 * config.input_img_size**2
    maps = 4 * frames * prompt * encoder.hidden_dim
    prefill = prompt * (4 * decoder.hidden_size + 3 * decoder.intermediate_size)
    # Guided decoding, in single precision: the frames where they are not so already, one of them as each scale shows
    # it, and the picture so far.
    shown = len(config.scales) + 2 + (frames if width < 4 else 0)
    guide = 4 * 3 * shown * config.scales[-1] ** 2 if config.reward_guidance else 0
    return width * (cache + pixels + maps + prefill) + guide


def largest_of_row(config: AutoGazeConfig, frames: int) -> int:
    """Numbers of a row in the largest tensor of the encoder: the frames, or the channels that a convolution sees."""
    encoder = config.encoder
    pixels = encoder.temporal_patch_size * 3 * config.input_img_size**2
    return frames * max(pixels, encoder.trunk_temporal_kernel_size * encoder.hidden_dim * config.num_prompt_tokens)


def cut_rows(rows: int, row_bytes: int, device: torch.device, micro_batch: int | None, largest: int = 1) -> list[slice]:
    """How a batch of `rows` is cut. micro_batch: rows of a piece, where the caller decides; otherwise memory does, and
    that no tensor has more numbers than can be counted. largest: numbers of a row, see `largest_of_row`."""
    if micro_batch is not None and micro_batch < 1:
        raise InputError(f"micro_batch must be at least 1, got {micro_batch}")
    room = HOST_BYTES
    if device.type == "cuda":  # what nobody has, and what torch keeps without using it
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        room = (torch.cuda.mem_get_info(device)[0] + kept) // 2
    size = min(micro_batch or max(min(room // row_bytes, INDEXABLE // largest), 1), rows)
    size = -(-rows // -(-rows // size))  # pieces of like size
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def join_choices(parts: Sequence[Choices], end_id: int) -> Choices:
    """Choices of the pieces of a batch -> of the batch."""
    if len(parts) == 1:
        return parts[0]
    counts = [max(frame) for frame in zip(*(part.counts for part in parts), strict=True)]

    def joined(name: str) -> torch.Tensor:
        rows = []
        for part in parts:
            frames = getattr(part, name).split(part.counts, dim=1)
            padded = [F.pad(x, (0, n - x.shape[1]), value=end_id) for x, n in zip(frames, counts, strict=True)]
            rows.append(torch.cat(padded, dim=1))
        return torch.cat(rows)

    return Choices(
        joined("ids"),
        joined("drawn"),
        counts,
        torch.cat([part.row_counts for part in parts]),
        _join_states([part.state for part in parts]),
    )


def _join_states(states: Sequence[GazeState | None]) -> GazeState | None:
    known = [state for state in states if state is not None]
    if not known:
        return None
    longest = max(state.keys[0].shape[2] for state in known)
    canvases = [state.canvas for state in known if state.canvas is not None]

    def stored(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in tensors])

    return GazeState(
        tuple(stored(layer) for layer in zip(*(state.keys for state in known), strict=True)),
        tuple(stored(layer) for layer in zip(*(state.values for state in known), strict=True)),
        torch.cat([state.lengths for state in known]),
        torch.cat([state.unfed for state in known]),
        torch.cat([state.unfed_counts for state in known]),
        tuple(torch.cat(block) for block in zip(*(state.conv for state in known), strict=True)),
        torch.cat(canvases) if canvases else None,
    )
