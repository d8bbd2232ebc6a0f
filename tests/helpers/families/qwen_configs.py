"""Configurations of tiny Qwen models."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from .configs import LAYERS, WIDTH, Variant, ids_of, llm

QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def _qwen(name: str, tokenizer: PreTrainedTokenizerFast, variant: Variant, vision: Any, text: Any) -> Any:
    return getattr(transformers, name)(
        vision_config={
            "num_heads": 2,
            "depth": LAYERS,
            "patch_size": variant.shape.patch,
            "spatial_merge_size": variant.shape.merge,
            "temporal_patch_size": 2,
        }
        | vision,
        text_config=text.to_dict(),
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, **QWEN_IDS),
    )


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], **more}}


def qwen2_vl(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    text = llm("Qwen2VLTextConfig", tokenizer, variant, **_rope())
    vision = {"embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2}
    return _qwen("Qwen2VLConfig", tokenizer, variant, vision, text)


def qwen2_5_vl(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    """Windows of 2 x 2 groups, or (odd) 3 x 3; the middle layer sees the whole tubelet."""
    text = llm("Qwen2_5_VLTextConfig", tokenizer, variant, **_rope())
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": WIDTH,
        "window_size": (3 if variant.odd else 2) * variant.shape.patch * variant.shape.merge,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    return _qwen("Qwen2_5_VLConfig", tokenizer, variant, vision, text)


def _qwen3_vision(variant: Variant) -> dict[str, Any]:
    """The position table is neither of the picture's size nor a multiple of it."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 49 if variant.odd else 36,
    }


DEEPSTACK = {"deepstack_visual_indexes": [0, 1]}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


def qwen3_vl(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    text = llm("Qwen3VLTextConfig", tokenizer, variant, **_rope(mrope_interleaved=True))
    return _qwen("Qwen3VLConfig", tokenizer, variant, _qwen3_vision(variant) | DEEPSTACK, text)


def qwen3_vl_moe(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    text = llm("Qwen3VLMoeTextConfig", tokenizer, variant, **_rope(mrope_interleaved=True), **EXPERTS)
    return _qwen("Qwen3VLMoeConfig", tokenizer, variant, _qwen3_vision(variant) | DEEPSTACK, text)


def _qwen3_5_text(name: str, tokenizer: PreTrainedTokenizerFast, variant: Variant, **more: Any) -> Any:
    return llm(
        name,
        tokenizer,
        variant,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **_rope(mrope_interleaved=True, partial_rotary_factor=0.5),
        **more,
    )


def qwen3_5(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    text = _qwen3_5_text("Qwen3_5TextConfig", tokenizer, variant)
    return _qwen("Qwen3_5Config", tokenizer, variant, _qwen3_vision(variant), text)


def qwen3_5_moe(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    experts = EXPERTS | {"shared_expert_intermediate_size": 32}
    text = _qwen3_5_text("Qwen3_5MoeTextConfig", tokenizer, variant, **experts)
    return _qwen("Qwen3_5MoeConfig", tokenizer, variant, _qwen3_vision(variant), text)
