"""What is written to disk of a wrapped model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError
from ..common.storage.files import output_folder, write_json, written_by_others
from ..gaze.selectors.base import as_selector

if TYPE_CHECKING:
    from .model import GazedModel

SETTINGS_FILE = "autogaze_mllm.json"


def save(model: GazedModel, folder: str | Path, options: Mapping[str, Any] | None = None) -> None:
    """folder/base: model, tokenizer, image processor. folder/gaze: gaze model. The settings file is written last, so a
    folder that has one is complete. options: for the base's own save_pretrained."""
    if any(".lora_" in name for name, _ in model.family.base.named_parameters()):
        raise InputError("this model holds LoRA: it is saved by what trained it, or merged (`autogaze-mllm merge`)")
    own = dict(options or {})
    if own.get("state_dict") is not None:
        weights = own["state_dict"].items()
        own["state_dict"] = {name[5:]: tensor for name, tensor in weights if name.startswith("base.")}
    save_base(model, folder, "base", own)


def save_base(model: GazedModel, folder: str | Path, below: str, options: Mapping[str, Any] | None = None) -> None:
    """below: where in the folder the base model lies; "" for the folder itself."""
    target = output_folder(folder)
    (target / SETTINGS_FILE).unlink(missing_ok=True)
    with written_by_others(output_folder(target / below)):
        model.family.base.save_pretrained(target / below, **(options or {}))
    model.preprocessing.save_pretrained(target / below)
    save_settings(model, target, base=below or ".")


def save_settings(model: GazedModel, target: Path, base: str, tuned: dict[str, Any] | None = None) -> None:
    """Writes the gaze model, then the settings file. base: the base model's folder, below this one, or where else it
    comes from. tuned: what `save_parts` gave."""
    stored = as_selector(model.gaze).store(target)
    tower = model.tower
    write_json(
        target / SETTINGS_FILE,
        {
            "format": 1,
            "base": base,
            **({"tuned": tuned} if tuned is not None else {}),
            "gaze": stored,
            "settings": model.settings.to_dict(),
            "tower": {
                "scales": list(tower.grid.scales) if tower.fixed else None,
                "attn_type": tower.attn_type,
                "frame_independent": tower.frame_independent,
                **({"coarse_positions": tower.coarse_positions} if hasattr(tower, "coarse_positions") else {}),
            },
        },
    )
