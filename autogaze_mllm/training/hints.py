"""A help for young models: what a patch is worth is read off its vision token in the middle of the decoder.

Next-token prediction alone teaches a new model the usual order of patches at once, and to look at the video only much
later. A linear head, for training only, therefore predicts from the state of every vision token how wrong the picture
is at its place: as earlier frames left it, and as the patches of each scale would show it. From these numbers every
gain follows; the upper layers only have to compare them. The gaze model itself gains no parameters.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..gaze.model import AutoGaze


class HintHead(nn.Module):
    """maps: numbers that each token predicts. Used as a context around `gaze.score`, it keeps the states it needs."""

    def __init__(self, gaze: AutoGaze, maps: int, floor: float) -> None:
        super().__init__()
        layers = gaze.gazing_model.gaze_decoder.model.layers
        self.readout = nn.Linear(gaze.config.decoder.hidden_size, maps)
        self.floor, self.prompt = floor, gaze.config.num_prompt_tokens
        self.side = gaze.config.input_img_size // gaze.config.encoder.kernel_size
        self._layer = [layers[(len(layers) - 1) // 2]]  # in a list: a part of the gaze model, not of this one
        self._states: torch.Tensor | None = None
        self._handle: Any = None

    def __enter__(self) -> HintHead:
        def keep(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            self._states = output

        self._handle = self._layer[0].register_forward_hook(keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def loss(self, errors: torch.Tensor, cells: tuple[int, int], counts: list[int]) -> torch.Tensor:
        """errors: (B, T, maps, n) of every finest patch, on `cells` rows and columns; counts: entries of each frame in
        the sequence that was scored. -> mean squared error on a logarithmic scale, a number."""
        assert self._states is not None, "nothing was scored"
        start, tokens = 0, []
        for count in counts:
            tokens.append(self._states[:, start : start + self.prompt])
            start += self.prompt + count
        self._states = None
        predicted = self.readout(torch.stack(tokens, dim=1).float())  # (B, T, P, maps)
        wanted = errors.unflatten(-1, cells).flatten(0, 1)
        if cells != (self.side, self.side):
            wanted = F.interpolate(wanted, (self.side, self.side), mode="bilinear")
        wanted = (1 + wanted / self.floor).log().flatten(2).transpose(1, 2).unflatten(0, errors.shape[:2])
        return F.mse_loss(predicted, wanted)
