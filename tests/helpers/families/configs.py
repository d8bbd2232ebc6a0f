"""Configurations of tiny models of every family: the published architectures, a few dozen channels wide.

A picture of `Shape.side` pixels gives `Shape.side // (patch * merge)` tokens a side. Families whose towers take any
size have no `image_size` in their configuration; `side` is then only what the tests feed them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

WIDTH = 64  # of the LLM
LAYERS = 3


@dataclass(frozen=True)
class Shape:
    """side: pixels along a picture. patch: pixels along a tower patch. merge: patches along one visual token."""

    side: int
    patch: int
    merge: int = 1

    @property
    def tokens(self) -> int:
        """Visual tokens along one side of a picture."""
        return self.side // self.patch // self.merge


@dataclass(frozen=True)
class Variant:
    """odd: the other choices that a configuration has. tied: whether the LLM's head is its embedding table."""

    shape: Shape
    odd: bool
    tied: bool


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Ids of the embedding table: those of the tokenizer and a few that it never gives, as in published models."""
    return -(-len(tokenizer) // 8) * 8


def llm(name: str, tokenizer: PreTrainedTokenizerFast, variant: Variant, **more: Any) -> Any:
    settings = {
        "vocab_size": vocabulary_size(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1 << 16,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": variant.tied,
    }
    kind = getattr(transformers, name)
    if name == "Qwen2Config":
        del settings["head_dim"]  # which is not a field of it
    return kind(**settings | more)


def tower_of(name: str, variant: Variant, **more: Any) -> Any:
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "image_size": variant.shape.side,
        "patch_size": variant.shape.patch,
    }
    return getattr(transformers, name)(**settings | more)


def _siglip(variant: Variant, **more: Any) -> Any:
    return tower_of("SiglipVisionConfig", variant, vision_use_head=False, **more)


def ids_of(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def llava(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return transformers.LlavaConfig(
        vision_config=_siglip(variant),
        text_config=llm("Qwen2Config", tokenizer, variant),
        vision_feature_layer=-2 if variant.odd else -1,
        vision_feature_select_strategy="full",
        image_seq_length=variant.shape.tokens**2,
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_index="<image>"),
    )


def llava_clip(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    """LLaVA-1.5. odd: the class token stays, and two layers' states are joined."""
    return transformers.LlavaConfig(
        vision_config=tower_of("CLIPVisionConfig", variant),
        text_config=llm("LlamaConfig", tokenizer, variant),
        vision_feature_layer=[-2, -1] if variant.odd else -2,
        vision_feature_select_strategy="full" if variant.odd else "default",
        image_seq_length=variant.shape.tokens**2,
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_index="<image>"),
    )


def pinpoints(side: int) -> list[list[int]]:
    """Sizes that any-resolution images are brought to."""
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def llava_next_video(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return transformers.LlavaNextVideoConfig(
        vision_config=tower_of("CLIPVisionConfig", variant),
        text_config=llm("LlamaConfig", tokenizer, variant),
        image_grid_pinpoints=pinpoints(variant.shape.side),
        spatial_pool_stride=variant.shape.merge,
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )


def video_llava(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return transformers.VideoLlavaConfig(
        vision_config=tower_of("CLIPVisionConfig", variant),
        text_config=llm("LlamaConfig", tokenizer, variant),
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )


def llava_onevision(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return transformers.LlavaOnevisionConfig(
        vision_config=_siglip(variant),
        text_config=llm("Qwen2Config", tokenizer, variant),
        image_grid_pinpoints=pinpoints(variant.shape.side),
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )


def smolvlm(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return _shuffled(tokenizer, variant, "SmolVLM", "SmolVLMVisionConfig")


def idefics3(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return _shuffled(tokenizer, variant, "Idefics3", "Idefics3VisionConfig")


def _shuffled(tokenizer: PreTrainedTokenizerFast, variant: Variant, name: str, kind: str) -> Any:
    return getattr(transformers, f"{name}Config")(
        vision_config=tower_of(kind, variant),
        text_config=llm("LlamaConfig", tokenizer, variant),
        scale_factor=variant.shape.merge,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_id="<image>"),
    )


def internvl(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    """Sizes are lists, as published. odd: plain numbers, and norms of queries and keys."""
    shape = variant.shape
    choices: dict[str, Any] = {"image_size": [shape.side, shape.side], "patch_size": [shape.patch, shape.patch]}
    if variant.odd:
        choices = {
            "image_size": shape.side,
            "patch_size": shape.patch,
            "use_qk_norm": True,
            "norm_type": "rms_norm",
            "attention_bias": True,
        }
    return transformers.InternVLConfig(
        vision_config=tower_of("InternVLVisionConfig", variant, **choices),
        text_config=llm("Qwen2Config", tokenizer, variant),
        downsample_ratio=1 / shape.merge,
        image_seq_length=shape.tokens**2,
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )


def aya_vision(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return transformers.AyaVisionConfig(
        vision_config=_siglip(variant),
        text_config=llm("Cohere2Config", tokenizer, variant, logit_scale=1.0, sliding_window=4096),
        downsample_factor=variant.shape.merge,
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_index="<|IMG_PATCH|>"),
    )


def video_llama_3(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    vision = transformers.VideoLlama3VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        patch_size=variant.shape.patch,
    )
    return transformers.VideoLlama3Config(
        vision_config=vision,
        text_config=llm("Qwen2Config", tokenizer, variant),
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )


def gemma3(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    """odd: the window of its sliding layers is shorter than a prompt with two frames."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    window = 24 if variant.odd else 4096
    return transformers.Gemma3Config(
        vision_config=_siglip(variant),
        text_config=llm(
            "Gemma3TextConfig",
            tokenizer,
            variant,
            query_pre_attn_scalar=16,
            sliding_window=window,
            layer_types=layers,
        ),
        mm_tokens_per_image=variant.shape.tokens**2,
        tie_word_embeddings=variant.tied,
        **ids_of(
            tokenizer,
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )


def paligemma(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    return _paligemma(tokenizer, variant, llm("GemmaConfig", tokenizer, variant))


def paligemma2(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    """With Gemma 2: sliding layers, and logits that are capped."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    text = llm("Gemma2Config", tokenizer, variant, query_pre_attn_scalar=16, sliding_window=4096, layer_types=layers)
    return _paligemma(tokenizer, variant, text)


def _paligemma(tokenizer: PreTrainedTokenizerFast, variant: Variant, text: Any) -> Any:
    return transformers.PaliGemmaConfig(
        vision_config=_siglip(variant),
        text_config=text,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        tie_word_embeddings=variant.tied,
        **ids_of(tokenizer, image_token_index="<image>"),
    )


def gemma4(tokenizer: PreTrainedTokenizerFast, variant: Variant) -> Any:
    """odd: features are standardised, and every layer gets its own embeddings of the ids, as in the smallest models;
    otherwise frames are bidirectional blocks, as in the largest."""
    shape = variant.shape
    vision = transformers.Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=16,
        patch_size=shape.patch,
        pooling_kernel_size=shape.merge,
        position_embedding_size=64,
        standardize=variant.odd,
    )
    text = llm(
        "Gemma4TextConfig",
        tokenizer,
        variant,
        global_head_dim=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        sliding_window=4096,
        vocab_size_per_layer_input=vocabulary_size(tokenizer),
        hidden_size_per_layer_input=8 if variant.odd else 0,
        use_bidirectional_attention=None if variant.odd else "vision",
    )
    return transformers.Gemma4Config(
        vision_config=vision,
        text_config=text,
        audio_config=None,
        tie_word_embeddings=variant.tied,
        **ids_of(
            tokenizer,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
        ),
    )
