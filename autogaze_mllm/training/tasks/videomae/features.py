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

from ....common.errors import InputError, first_line, listed
from ....common.foreign_config import check_no_code, check_sizes
from ....common.storage.files import find_file, output_folder, read_json, write_json, written_by_others
from ....common.storage.json_text import Fields, shown
from ....common.storage.weights import check_finite

DEFAULT_MODELS = {
    "dinov2_reg": "facebook/dinov2-with-registers-base",
    "siglip2": "google/siglip2-base-patch16-224",
}
TYPES = {"dinov2_reg": ("dinov2_with_registers",), "siglip2": ("siglip", "siglip_vision_model")}
# Mean and std of the image processors that these models name, where a file does not say them.
USUAL = {
    "dinov2_reg": {
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    "siglip2": {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
}
LARGEST = 1e6  # of numbers that make values of pixels
LAYERS = 4  # hidden states compared, the last ones


@dataclass(frozen=True)
class PixelStatistics:
    """How a processor's values come from pixels 0..255: x * scale, then - 1 with offset, then (x - mean) / std."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    offset: bool = False

    def __post_init__(self) -> None:
        positive = (*self.std, self.scale)
        if not all(0 < value < LARGEST for value in positive) or not all(abs(value) < LARGEST for value in self.mean):
            raise InputError(
                f"preprocessor: mean {shown(self.mean)}, deviation {shown(self.std)} and factor {self.scale} make no "
                "pixels: numbers of usual size, the latter two above 0, are needed"
            )

    @classmethod
    def from_dict(
        cls, source: Mapping[str, Any], where: object = "preprocessor", usual: Mapping[str, Any] | None = None
    ) -> PixelStatistics:
        """From the keys of a `preprocessor_config.json`. usual: mean and std that its class has where it says none."""
        fields = Fields({key: value for key, value in source.items() if value is not None}, where)
        normal, scaled = (fields.get(key, bool, True) for key in ("do_normalize", "do_rescale"))
        default = usual or USUAL["siglip2"]
        mean, std = (fields.get(key, tuple[float, float, float], default[key]) for key in ("image_mean", "image_std"))
        factor, offset = fields.get("rescale_factor", float, 1 / 255), fields.get("offset", bool, False)
        try:
            return cls(
                mean=tuple(mean) if normal else cls.mean,
                std=tuple(std) if normal else cls.std,
                scale=float(factor) if scaled else 1.0,
                offset=offset,
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def to(self, other: PixelStatistics, pixels: torch.Tensor) -> torch.Tensor:
        """Values (..., 3, H, W) by these statistics -> by the other's. No resizing, no clipping."""

        def column(values: tuple[float, ...]) -> torch.Tensor:
            return torch.tensor(values, device=pixels.device, dtype=pixels.dtype)[:, None, None]

        raw = (pixels * column(self.std) + column(self.mean) + (1.0 if self.offset else 0.0)) / self.scale
        return (raw * other.scale - (1.0 if other.offset else 0.0) - column(other.mean)) / column(other.std)


@dataclass(frozen=True)
class StoredNetwork:
    """A frozen network whose weights were read with those of something else. config, preprocessor: what its two json
    files say; where: what errors name."""

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    where: str


NetworkSource = str | Path | StoredNetwork  # the former two: a folder, or a repository of the hub


class FeatureLoss(nn.Module):
    """Mean squared difference of the last hidden states of a frozen model. Gradient flows through it."""

    def __init__(self, name: str, source: NetworkSource, statistics: PixelStatistics) -> None:
        super().__init__()
        if isinstance(source, StoredNetwork):
            where, self.preprocessor = source.where, dict(source.preprocessor)
        else:
            settings = find_file(source, "preprocessor_config.json")
            assert settings is not None
            where, self.preprocessor = str(settings), read_json(settings)
        self.model = _load_network(name, source).eval().requires_grad_(False)
        self.mine, self.theirs = statistics, PixelStatistics.from_dict(self.preprocessor, where, USUAL[name])
        self.skipped = 1 + self.model.config.num_register_tokens if name == "dinov2_reg" else 0

    def save_pretrained(self, folder: Path) -> None:
        """The network as transformers and the hub have it, and how it wants its pixels."""
        with written_by_others(output_folder(folder)):
            self.model.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", self.preprocessor)

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


def _load_network(name: str, source: NetworkSource) -> Any:
    """Raises InputError for what is no such model, or not all of it."""
    from transformers import Dinov2WithRegistersModel, SiglipVisionModel

    kind: Any = Dinov2WithRegistersModel if name == "dinov2_reg" else SiglipVisionModel
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # they are named below, in one line
    folder: Any = None
    if isinstance(source, StoredNetwork):
        where, stored = source.where, dict(source.config)
        # Copies: these may be mapped from a file, which may change while the network is in use.
        options["state_dict"] = {key: weight.clone() for key, weight in source.weights.items()}
    else:
        folder, where = source, str(source)
        path = find_file(source, "config.json", required=False)
        stored = {} if path is None else read_json(path)
    check_no_code(stored, where)
    check_sizes(stored, where)
    if stored.get("model_type", TYPES[name][0]) not in TYPES[name]:
        raise InputError(
            f"{where}: is a {shown(stored['model_type'])}, the loss {name} needs a {' or '.join(TYPES[name])}"
        )
    try:
        if folder is None:
            options["config"] = kind.config_class.from_dict(stored.get("vision_config", stored))
        found, report = kind.from_pretrained(folder, **options)
    except Exception as error:  # damaged files come as errors of many types
        raise InputError(f"{where}: cannot be loaded for the loss {name}: {first_line(error)}") from error
    check_finite(where, found.state_dict())
    faults = {
        "missing": sorted(report["missing_keys"]),
        "of another shape": sorted(str(key[0]) if isinstance(key, tuple) else key for key in report["mismatched_keys"]),
    }
    if any(faults.values()):
        summary = "; ".join(f"{kind}: {listed(keys, 4)}" for kind, keys in faults.items() if keys)
        raise InputError(f"{where}: its weights are not those of the model for the loss {name}: {summary}")
    return found


class L1Loss(nn.Module):
    def forward(self, rebuilt: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) each -> (n,)."""
        return (rebuilt - target).abs().mean(dim=(1, 2, 3))


class WeightedLosses(nn.Module):
    """`l1+dinov2_reg` with weights `1+0.3`: their weighted sum."""

    def __init__(
        self, names: str, weights: str, statistics: PixelStatistics, models: Mapping[str, NetworkSource] | None = None
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
