"""LLaVA-OneVision (transformers' LlavaOnevisionForConditionalGeneration).

Dense video: projected features of every frame, pooled 2 x 2, then one newline token. Gazed video: projected features of
the kept patches as they are (pooling needs a full grid, and gaze has already left out what repeats; single images reach
this LLM unpooled too), then the same newline token. Images keep the base model's own path (any-resolution crops).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ....common.compute.offloading import present
from ...media import Media
from ..base import Family


class LlavaOnevisionFamily(Family):
    model_type = "llava_onevision"
    title = "LLaVA-OneVision"
    example = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    raster, block_causal = False, True

    @property
    def _side(self) -> int:
        """Patches along one side of a dense frame."""
        return self.config.vision_config.image_size // self.config.vision_config.patch_size

    def gazed_count(self, counts: list[int]) -> int:
        return sum(counts) + 1

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self._with_newline(self.projector(features))

    def _with_newline(self, tokens: torch.Tensor) -> torch.Tensor:
        with present(self.base.model):
            return torch.cat([tokens, self.base.model.image_newline[None].to(tokens)])

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        inputs = self.image_processor(images=[image], return_tensors="pt")
        pixels, size = inputs["pixel_values"], inputs["image_sizes"]
        crops = pixels.shape[1] if alone else 1  # with several images in a prompt the base takes the whole image only
        count = self._packed_length(crops, size)
        content = {"pixel_values": pixels[:, :crops], "image_sizes": size, "alone": torch.tensor([alone])}
        return Media([count], content)

    def _packed_length(self, crops: int, size: torch.Tensor) -> int:
        """Length of the base's own packing, run on features without channels to speak of."""
        blank = [torch.zeros(crops, self._side**2, 1)]
        _, lengths = self.base.model.pack_image_features(
            blank, size, image_newline=torch.zeros(1), vision_aspect_ratio=self.config.vision_aspect_ratio
        )
        return int(lengths.sum())

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        return Media([self.dense_count(len(pixels))], {"pixel_values_videos": pixels[None]})

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        return frames * (-(-self._side // 2)) ** 2 + 1

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        device, dtype = self.device, self.base.dtype
        if "pixel_values_videos" in content:
            pixels = content["pixel_values_videos"].to(device, dtype)
            tokens = self.base.get_video_features(pixels).pooler_output.flatten(0, 1)
            if len(tokens) == self.dense_count(pixels.shape[1]):
                return tokens
            return self._with_newline(tokens)  # earlier transformers append it later, in forward
        features = self.base.get_image_features(
            pixel_values=content["pixel_values"].to(device, dtype),
            image_sizes=content["image_sizes"],
            # The base only asks whether a prompt has one image (then it is cut into crops) or more.
            batch_num_images=torch.tensor([1 if bool(content["alone"]) else 2]),
        )
        return torch.cat(list(features.pooler_output))

    def dense_inputs(self, media: Sequence[Sequence[Media]]) -> dict[str, Any] | None:
        crops = [item.dense["pixel_values"] for items in media for item in items if "pixel_values" in item.dense]
        found = super().dense_inputs(media) if len({part.shape[1] for part in crops}) < 2 else None
        if found is None:
            return None
        if found.pop("alone", None) is not None:
            images = [sum("pixel_values" in item.dense for item in items) for items in media]
            found["batch_num_images"] = torch.tensor(images, device=self.device)
        return found

    def chat(self, text: str, first: bool = True) -> str:
        return f"<|im_start|>user {text}<|im_end|><|im_start|>assistant\n"
