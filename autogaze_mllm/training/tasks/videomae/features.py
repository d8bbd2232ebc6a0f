"""Losses between a rebuilt frame and the original: pixels, and the features of frozen vision models.

docs/specification.md, "Reconstruction losses", says what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....common.errors import InputError, first_line
from ....common.foreign_config import check_no_code
from ....common.storage.files import find_file, read_json

DEFAULT_MODELS = {
    "dinov2_reg": "facebook/dinov2-with-registers-base",
    "siglip2": "google/siglip2-base-patch16-224",
}
LAYERS = 4  # hidden states compared, the last ones


@dataclass(frozen=True)
class PixelStatistics:
    """How a processor's values come from pixels 0..255: x * scale, then - 1 with offset, then (x - mean) / std."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    offset: bool = False

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> PixelStatistics:
        """From the keys of a `preprocessor_config.json`."""
        normal = source.get("do_normalize", True)
        return cls(
            mean=tuple(source["image_mean"]) if normal else cls.mean,
            std=tuple(source["image_std"]) if normal else cls.std,
            scale=float(source.get("rescale_factor", 1 / 255)) if source.get("do_rescale", True) else 1.0,
            offset=bool(source.get("offset", False)),
        )

    def to(self, other: PixelStatistics, pixels: torch.Tensor) -> torch.Tensor:
        """Values (..., 3, H, W) by these statistics -> by the other's. No resizing, no clipping."""

        def column(values: tuple[float, ...]) -> torch.Tensor:
            return torch.tensor(values, device=pixels.device, dtype=pixels.dtype)[:, None, None]

        raw = (pixels * column(self.std) + column(self.mean) + (1.0 if self.offset else 0.0)) / self.scale
        return (raw * other.scale - (1.0 if other.offset else 0.0) - column(other.mean)) / column(other.std)


class FeatureLoss(nn.Module):
    """Mean squared difference of the last hidden states of a frozen model. Gradient flows through it."""

    def __init__(self, name: str, source: str | Path, statistics: PixelStatistics) -> None:
        super().__init__()
        from transformers import Dinov2WithRegistersModel, SiglipVisionModel

        kind: Any = Dinov2WithRegistersModel if name == "dinov2_reg" else SiglipVisionModel
        settings = find_file(source, "preprocessor_config.json")
        facts = find_file(source, "config.json", required=False)
        assert settings is not None
        if facts is not None:
            check_no_code(read_json(facts), facts)
        try:
            found = kind.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
            self.model = found.eval().requires_grad_(False)
        except Exception as error:  # damaged files come as errors of many types
            raise InputError(f"{source}: cannot be loaded for the loss {name}: {first_line(error)}") from error
        self.mine, self.theirs = statistics, PixelStatistics.from_dict(read_json(settings))
        self.skipped = 1 + self.model.config.num_register_tokens if name == "dinov2_reg" else 0

    def train(self, mode: bool = True) -> FeatureLoss:
        return super().train(False)  # a frozen measure: no dropout, ever

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) -> (n, tokens, LAYERS * C)."""
        output = self.model(pixel_values=self.mine.to(self.theirs, pixels), output_hidden_states=True)
        return torch.cat([state[:, self.skipped :] for state in output.hidden_states[-LAYERS:]], dim=-1)

    def forward(self, rebuilt: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) each -> (n,)."""
        with torch.no_grad():
            wanted = self.features(target)
        return (self.features(rebuilt) - wanted).square().mean(dim=(1, 2))


class L1Loss(nn.Module):
    def forward(self, rebuilt: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) each -> (n,)."""
        return (rebuilt - target).abs().mean(dim=(1, 2, 3))


class WeightedLosses(nn.Module):
    """`l1+dinov2_reg` with weights `1+0.3`: their weighted sum."""

    def __init__(
        self, names: str, weights: str, statistics: PixelStatistics, models: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.names = names.split("+")
        try:
            self.weights = [float(weight) for weight in weights.split("+")]
        except ValueError:
            self.weights = []
        if len(self.weights) != len(self.names):
            raise InputError(f"losses {names!r} need as many weights, joined by '+', got {weights!r}")
        sources = {**DEFAULT_MODELS, **(models or {})}
        parts: list[nn.Module] = []
        for name in self.names:
            if name != "l1" and name not in DEFAULT_MODELS:
                raise InputError(f"loss {name!r} is not known; known: l1, {', '.join(DEFAULT_MODELS)}")
            parts.append(L1Loss() if name == "l1" else FeatureLoss(name, sources[name], statistics))
        self.parts = nn.ModuleList(parts)

    def forward(self, rebuilt: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) each -> (n,)."""
        losses = [weight * part(rebuilt, target) for weight, part in zip(self.weights, self.parts, strict=True)]
        return torch.stack(losses).sum(dim=0)
