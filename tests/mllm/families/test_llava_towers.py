"""LLaVA with other towers than the published ones: what is taken is the base, what cannot be is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Siglip2VisionConfig,
)

import autogaze_mllm as am
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.mllm.preprocessing import Preprocessing
from autogaze_mllm.mllm.tiny import tiny_tokenizer

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def llava(vision: Any, strategy: str = "default") -> tuple[Any, Preprocessing]:
    tokenizer = tiny_tokenizer()
    text = Qwen2Config(vocab_size=len(tokenizer), intermediate_size=48, num_key_value_heads=2, **WIDTH)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
    )
    torch.manual_seed(0)
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    return LlavaForConditionalGeneration(config).eval(), Preprocessing(tokenizer, images)


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_llava_with_dinov2_sees_all_that_the_base_sees(strategy: str) -> None:
    base, preprocessing = llava(Dinov2Config(image_size=64, patch_size=16, mlp_ratio=2, **WIDTH), strategy)
    model = am.wrap(base, "all", processor=preprocessing, scales="64", frames=3, ratio=1.0, cache=False)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    gazed = model.gaze_video(frames)
    with torch.no_grad():
        (features,) = model.family.gazed_features(model.tower, [gazed])
        found = model.family.project(features, gazed.picture_counts())
        expected = model.family.dense_features({"pixel_values": model.family.frame_pixels(frames)})
    assert isinstance(gazed, GazedVideo) and len(expected) == 3 * (17 if strategy == "full" else 16)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "vision",
    [
        Dinov2WithRegistersConfig(image_size=64, patch_size=16, mlp_ratio=2, **WIDTH),
        Siglip2VisionConfig(num_patches=16, patch_size=16, intermediate_size=48, **WIDTH),
    ],
    ids=["registers", "naflex"],
)
def test_towers_that_the_base_cannot_use_are_refused(vision: Any) -> None:
    base, preprocessing = llava(vision)
    with pytest.raises(am.InputError, match=f"LLaVA with a {vision.model_type} tower cannot be gazed; towers that can"):
        am.wrap(base, "all", processor=preprocessing, cache=False)
