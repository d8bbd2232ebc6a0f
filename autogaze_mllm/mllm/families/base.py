"""What a family adapter tells: where a base model keeps its parts, and what follows its projector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...common.errors import InputError
from ...common.hashing import fingerprint
from ...common.pixels import PixelFormat, resize_frames
from ...gaze.gazed_video import GazedVideo
from ...gaze.settings import VideoSettings
from ...vision.tower import GazedSiglipVisionModel
from ..media import Media
from ..preprocessing import Preprocessing


class Family(ABC):
    """Adapter around one loaded base model. It reads the base and calls it; it never changes it."""

    model_type: ClassVar[str]
    title: ClassVar[str]
    example: ClassVar[str]  # a published checkpoint
    after_media: ClassVar[str] = "\n"  # between a video or image and the question
    # What the names of each part's parameters begin with, in the base.
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "tower": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.", "model.image_newline"),
        "llm": ("model.language_model.", "lm_head."),
    }

    def __init__(self, base: Any, preprocessing: Preprocessing) -> None:
        self.base = base  # a transformers model; Any, because every family names its parts differently
        self.image_processor = preprocessing.image_processor
        self.tokenizer = preprocessing.tokenizer

    @classmethod
    def load_preprocessing(cls, source: str | Path, **hub: Any) -> Preprocessing:
        """Tokenizer and image processor from where the base model comes from."""
        return Preprocessing.from_pretrained(source, **hub)

    @classmethod
    def default_settings(cls) -> VideoSettings:
        """How videos are gazed when the user does not say."""
        return VideoSettings()

    def tower_defaults(self) -> dict[str, Any]:
        """scales, attn_type and frame_independent of the gazed tower, where the base's configuration has them."""
        vision = self.config.vision_config
        names = {"scales": "scales", "attn_type": "attn_type", "frame_independent": "frame_independent_encoding"}
        told = {name: getattr(vision, stored, None) for name, stored in names.items()}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def tower(self) -> nn.Module:
        """The SigLIP vision model."""
        return self.base.model.vision_tower

    @property
    def language_model(self) -> nn.Module:
        """The LLM, with or without its head."""
        return self.base.model.language_model

    @classmethod
    def part_of(cls, name: str) -> str:
        """Of which part ("tower", "projector" or "llm") a parameter of the base is, by its name there."""
        return next(part for part, starts in cls.PREFIXES.items() if name.startswith(starts))

    @property
    def image_token_id(self) -> int:
        """The id that stands for an image's tokens in a prompt."""
        return self.config.image_token_id

    @property
    def video_token_id(self) -> int:
        """The id that stands for a video's tokens; families without one use the image's."""
        own = getattr(self.config, "video_token_id", None)
        return self.image_token_id if own is None else own

    @property
    def feature_layers(self) -> list[int]:
        """hidden_states of the tower that the projector takes, joined on channels."""
        layers = self.config.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    @property
    def context_length(self) -> int | None:
        """Tokens that the LLM was made for, if its configuration says."""
        return getattr(getattr(self.config, "text_config", None), "max_position_embeddings", None)

    @property
    def pixels(self) -> PixelFormat:
        """Normalisation of the tower's pixels."""
        mean = getattr(self.image_processor, "image_mean", None)
        std = getattr(self.image_processor, "image_std", None)
        return PixelFormat(tuple(mean), tuple(std)) if mean is not None and std is not None else PixelFormat()

    def vision_state(self) -> str:
        """Fingerprint of what decides the visual tokens of a video: all weights but the LLM's, and which adapters
        (peft) are switched on."""

        def decides(name: str) -> bool:
            return not any(f".{start}" in f".{name}." for start in self.PREFIXES["llm"])  # peft may stand before them

        weights = {name: tensor for name, tensor in self.base.state_dict().items() if decides(name)}
        adapters = [
            (name, module.disable_adapters, module.active_adapters, sorted(getattr(module, "scaling", {}).items()))
            for name, module in self.base.named_modules()
            if isinstance(getattr(module, "disable_adapters", None), bool) and decides(name)  # a layer of peft's
        ]
        return fingerprint(weights) + (str(adapters) if adapters else "")

    @property
    def dense_side(self) -> int:
        """Pixels along one side of a dense picture."""
        return self.config.vision_config.image_size

    def frame_pixels(self, frames: np.ndarray) -> torch.Tensor:
        """(T, H, W, 3) uint8 -> (T, 3, S, S) as a dense tower takes them, by the same resize that gaze uses."""
        side = self.dense_side
        return self.pixels.normalize(resize_frames(frames, side, side, torch.device("cpu")).float() / 255)

    def gazed_count(self, counts: list[int]) -> int:
        """Visual tokens of a gazed video whose pictures (frames, then thumbnails) keep this many patches each."""
        return sum(counts)

    def gazed_features(self, tower: GazedSiglipVisionModel, videos: Sequence[GazedVideo]) -> list[torch.Tensor]:
        """Tower features of the kept patches (N, C of all feature layers) of each video, picture after picture.

        The tower runs once for all of them: clips never see each other, and many short videos cost as one long one.
        """
        joined = videos[0] if len(videos) == 1 else GazedVideo.concatenate(videos)
        packed = torch.cat([tower.encode(joined, layer) for layer in self.feature_layers], dim=-1)
        parts = packed.split([len(video) for video in videos])
        return [part[video.token_order().to(part.device)] for part, video in zip(parts, videos, strict=True)]

    @abstractmethod
    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Tower features of one gazed video (N, C), counts of them for each picture -> what stands in the prompt
        (gazed_count(counts), D)."""

    @abstractmethod
    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        """The base model's own treatment of an image. alone: it is the only image of its prompt."""

    @abstractmethod
    def dense_video(self, pixels: torch.Tensor) -> Media:
        """The base model's own treatment of video frames, given as `frame_pixels` makes them (T, 3, S, S)."""

    @abstractmethod
    def dense_count(self, frames: int) -> int:
        """Visual tokens that the base model spends on a video of this many frames."""

    @abstractmethod
    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        """Features of dense_image / dense_video as they stand in the prompt (tokens, D)."""

    @abstractmethod
    def chat(self, text: str, first: bool = True) -> str:
        """A question in the family's conversation format, for processors without a chat template. first: it begins the
        conversation; otherwise it follows an answer."""

    def answer(self, text: str) -> str:
        """An answer as it stands after `chat`, with what ends it."""
        return f"{text}{self.tokenizer.eos_token}"

    @classmethod
    def check_tower(cls, config: Any) -> None:
        """Raises InputError when a base of this configuration has a tower that cannot be gazed."""
        vision = config.vision_config.model_type
        if vision != "siglip_vision_model":
            raise InputError(
                f"{cls.title} with a {vision} tower cannot be gazed: the tower must be SigLIP or SigLIP 2 (fixed "
                f"resolution), as in {cls.example}"
            )
