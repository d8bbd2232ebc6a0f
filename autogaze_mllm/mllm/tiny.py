"""Tiny base models with random weights: what `finetune` starts from without a name, and what the tests wrap.

They have every part of a real model of their family and answer noise.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from .preprocessing import Preprocessing

SPECIAL = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One id per printable character, after the special tokens."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=" "))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token=" ",
        additional_special_tokens=SPECIAL[2:],
    )


def tiny_model(
    family: str = "llava_onevision",
    *,
    image_size: int = 224,
    patch: int = 16,
    hidden: int = 64,
    layers: int = 3,
    seed: int = 0,
) -> tuple[nn.Module, Preprocessing]:
    """A random base model of the family ("llava" or "llava_onevision") and its preprocessing, in evaluation mode."""
    vision = SiglipVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1 << 18,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    shared: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": SPECIAL.index("<image>"),
        "vision_feature_select_strategy": "full",
    }
    size = {"height": image_size, "width": image_size}
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        if family == "llava":
            model: nn.Module = LlavaForConditionalGeneration(LlavaConfig(vision_feature_layer=-2, **shared))
            image_processor: Any = SiglipImageProcessorPil(size=size)
        else:
            pinpoints = [[image_size, 2 * image_size], [2 * image_size, image_size], [2 * image_size, 2 * image_size]]
            config = LlavaOnevisionConfig(
                vision_feature_layer=-1,
                image_grid_pinpoints=pinpoints,
                video_token_index=SPECIAL.index("<video>"),
                **shared,
            )
            model = LlavaOnevisionForConditionalGeneration(config)
            image_processor = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=pinpoints)
    finally:
        torch.random.set_rng_state(state)
    return model.eval(), Preprocessing(tiny_tokenizer(), image_processor)
