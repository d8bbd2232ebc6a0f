"""Folders of small random VideoMAEs: as the published training leaves them, and what they are made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from autogaze_mllm.training.tasks.videomae.model import VideoMAE, VideoMAEConfig

from ..training_models import CONFIG

SMALL = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": 224}  # of a ViT-MAE
LOSSES = {"loss_type": "l1+dinov2_reg+siglip2", "loss_weights": "1+0.3+2"}


def write_networks(folder: Path) -> dict[str, str]:
    """Models behind feature losses, in the hub's layout: folders by the name of the loss."""
    torch.manual_seed(0)
    eyes = {"image_size": 64, "patch_size": 16}
    dino = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, **eyes, num_register_tokens=3))
    text = {"vocab_size": 20, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    siglip = SiglipModel(
        SiglipConfig(text_config=text | {"num_attention_heads": 2, "projection_size": 24}, vision_config=SMALL | eyes)
    )
    for model, name, mean in ((dino, "dinov2_reg", [0.485, 0.456, 0.406]), (siglip, "siglip2", [0.5, 0.5, 0.5])):
        model.save_pretrained(folder / name)
        settings = {"image_mean": mean, "image_std": [0.25, 0.2, 0.3], "rescale_factor": 1 / 255}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings))
    return {name: str(folder / name) for name in ("dinov2_reg", "siglip2")}


def write_vit_mae(folder: Path, *, pickled: bool = False, **config: Any) -> Path:
    """A plain ViT-MAE, as transformers writes it, or as older versions did; it has neither scales nor frames."""
    torch.manual_seed(1)
    plain = {key: value for key, value in CONFIG.items() if key not in ("scales", "max_num_frames")}
    ViTMAEForPreTraining(ViTMAEConfig(**plain | config)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    if pickled:
        stored = folder / "model.safetensors"
        torch.save(load_file(stored), folder / "pytorch_model.bin")
        stored.unlink()
    return folder


def cached(cache: Path, name: str, folder: Path) -> None:
    """The folder as a repository in a cache of the hub, as somebody downloaded it: what it lacks is not known there."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


def training_config(scales: str = CONFIG["scales"], **model: Any) -> dict[str, Any]:
    """A published training's, as far as it matters, with references as such files have them."""
    return {
        "task": {
            "recon_model": "vit-mae",
            "recon_sample_rate": 0.5,
            "attn_mode": "sdpa",
            "recon_model_config": {
                "scale_embed": True,
                "time_embed": True,
                "max_num_frames": CONFIG["max_num_frames"],
                "causal": True,
                **LOSSES,
                "l1_loss_config": None,
                "dinov2_reg_loss_config": {"model": "dinov2_reg"},
                "siglip2_loss_config": {"model": "siglip2"},
                **model,
            },
            "scales": "${model.scales}",
        },
        "model": {"scales": scales},
        "trainer": {"train_task": True},
    }


def write_published(parent: Path, name: str = "published") -> Path:
    """`parent/name`, with the weights of the networks; beside it, the descriptions of what it names."""
    start, networks = write_vit_mae(parent / "vit-mae"), write_networks(parent)
    torch.manual_seed(2)
    weights = {
        f"module.mae.{key}": value for key, value in VideoMAE(VideoMAEConfig.from_dict(CONFIG)).state_dict().items()
    }
    for loss, network in networks.items():
        for key, value in load_file(Path(network) / "model.safetensors").items():
            if loss != "siglip2" or key.startswith("vision_model."):
                weights[f"module.mae.{loss}.{key}"] = value
    for made_from in (start, *map(Path, networks.values())):
        (made_from / "model.safetensors").unlink()
    folder = parent / name
    folder.mkdir()
    torch.save(weights, folder / "videomae.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(training_config()))
    return folder
