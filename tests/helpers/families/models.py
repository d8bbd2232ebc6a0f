"""Tiny random models of every family that can be wrapped, with what prepares their inputs.

    model, preprocessing = build("qwen3_vl", variant="odd")

Weights are drawn so large that what a picture shows reaches the logits: with the small ones that transformers draws, a
model of a few layers answers the same whatever it sees.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from autogaze_mllm.mllm.preprocessing import Preprocessing
from autogaze_mllm.mllm.tiny import tiny_tokenizer

from . import configs, folders, qwen_configs
from .configs import Shape, Variant
from .templates import TEMPLATES

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS_TOKENS = (
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)


@dataclass(frozen=True)
class TinyFamily:
    """One family. config: makes its configuration. images: its image processor (Pillow), and settings of it.

    named: special tokens that its tokenizer has as attributes. bos: what its tokenizer puts before a text by itself.
    tied: how published models are. bytewise: transformers reads it with a byte-level tokenizer, whatever is stored.
    """

    model_type: str
    model_class: str
    config: Callable[[PreTrainedTokenizerFast, Variant], Any]
    plain: Shape
    odd: Shape
    images: Callable[[Shape], Any]
    tokens: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    bos: str | None = None
    tied: bool = False
    bytewise: bool = False


def _pillow(module: str, name: str, **settings: Any) -> Any:
    """The image processor that works without torchvision. From its own module: transformers 5.17 says of two of them
    that they need torchvision when they are asked for by their name alone."""
    kind = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(kind, f"{name}ImageProcessorPil")(**settings)


def _fixed(
    module: str, name: str, mean: tuple[float, ...], std: tuple[float, ...], **more: Any
) -> Callable[[Shape], Any]:
    """An image processor that makes squares of the tower's size."""

    def make(shape: Shape) -> Any:
        size = {"height": shape.side, "width": shape.side}
        return _pillow(module, name, size=size, image_mean=mean, image_std=std, **more)

    return make


def _clip(shape: Shape) -> Any:
    size = {"height": shape.side, "width": shape.side}
    return _pillow("clip", "CLIP", size={"shortest_edge": shape.side}, crop_size=size)


def _next(shape: Shape) -> Any:
    size = {"height": shape.side, "width": shape.side}
    pinpoints = configs.pinpoints(shape.side)
    return _pillow(
        "llava_next", "LlavaNext", size={"shortest_edge": shape.side}, crop_size=size, image_grid_pinpoints=pinpoints
    )


def _onevision(shape: Shape) -> Any:
    size = {"height": shape.side, "width": shape.side}
    pinpoints = configs.pinpoints(shape.side)
    return _pillow(
        "llava_onevision", "LlavaOnevision", size=size, image_grid_pinpoints=pinpoints, image_mean=HALF, image_std=HALF
    )


def _split(module: str, name: str) -> Callable[[Shape], Any]:
    """An image processor that adds tiles to large images."""

    def make(shape: Shape) -> Any:
        return _pillow(module, name, size={"longest_edge": 2 * shape.side}, max_image_size={"longest_edge": shape.side})

    return make


def _qwen(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Shape], Any]:
    """An image processor that keeps the image's shape."""

    def make(shape: Shape) -> Any:
        token = (shape.patch * shape.merge) ** 2
        return _pillow(
            "qwen2_vl",
            "Qwen2VL",
            size={"shortest_edge": 4 * token, "longest_edge": 36 * token},
            patch_size=shape.patch,
            merge_size=shape.merge,
            image_mean=mean,
            image_std=std,
        )

    return make


def _video_llama(shape: Shape) -> Any:
    token = shape.patch**2
    size = {"shortest_edge": 4 * token, "longest_edge": 36 * token}
    return _pillow("video_llama_3", "VideoLlama3", size=size, patch_size=shape.patch)


def _gemma4(shape: Shape) -> Any:
    # Only the published numbers of tokens are allowed; of 70 an image takes what its shape gives.
    return _pillow("gemma4", "Gemma4", patch_size=shape.patch, pooling_kernel_size=shape.merge, max_soft_tokens=70)


_CLIP_LLAMA = {"plain": Shape(64, 16), "odd": Shape(70, 14), "bos": "<s>"}
_QWEN2 = {
    "plain": Shape(64, 8, 2),
    "odd": Shape(60, 6, 2),
    "images": _qwen(CLIP_MEAN, CLIP_STD),
    "tokens": QWEN_TOKENS,
}
_QWEN3 = _QWEN2 | {"images": _qwen(HALF, HALF)}
_IDEFICS = {"tokens": IDEFICS_TOKENS}
_GEMMA_NAMES = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
_PALI = {
    "plain": Shape(64, 16),
    "odd": Shape(70, 14),
    "images": _fixed("siglip", "Siglip", HALF, HALF),
    "bos": "<bos>",
    "tied": True,
}


def _family(name: str, model_class: str, *, model_type: str | None = None, **settings: Any) -> TinyFamily:
    kind = f"{model_class}ForConditionalGeneration"
    config = getattr(qwen_configs if name.startswith("qwen") else configs, name)
    return TinyFamily(model_type or name, kind, config, **settings)


FAMILIES = {
    "llava": _family(
        "llava",
        "Llava",
        plain=Shape(64, 16),
        odd=Shape(70, 14),
        images=_fixed("siglip", "Siglip", HALF, HALF),
    ),
    "llava_clip": _family("llava_clip", "Llava", model_type="llava", images=_clip, **_CLIP_LLAMA),
    "qwen2_5_vl": _family("qwen2_5_vl", "Qwen2_5_VL", **_QWEN2),
    "qwen3_vl": _family("qwen3_vl", "Qwen3VL", **_QWEN3),
    "qwen3_5": _family("qwen3_5", "Qwen3_5", bytewise=True, **_QWEN3),
    "smolvlm": _family(
        "smolvlm",
        "SmolVLM",
        plain=Shape(64, 4, 4),
        odd=Shape(56, 6, 3),  # the last two pixels are in no patch
        images=_split("smolvlm", "SmolVLM"),
        **_IDEFICS,
    ),
    "internvl": _family(
        "internvl",
        "InternVL",
        plain=Shape(64, 8, 2),
        odd=Shape(42, 7, 2),
        images=_fixed("got_ocr2", "GotOcr2", IMAGENET_MEAN, IMAGENET_STD, crop_to_patches=True, max_patches=4),
        tokens=("<img>", "</img>", "<IMG_CONTEXT>"),
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "gemma3": _family(
        "gemma3",
        "Gemma3",
        plain=Shape(64, 4, 4),
        odd=Shape(54, 6, 3),
        images=_fixed("gemma3", "Gemma3", HALF, HALF),
        tokens=("<start_of_turn>", "<end_of_turn>", *_GEMMA_NAMES.values()),
        named=_GEMMA_NAMES,
        bos="<bos>",
        tied=True,
    ),
    "paligemma": _family("paligemma", "PaliGemma", **_PALI),
    "paligemma2": _family("paligemma2", "PaliGemma", model_type="paligemma", **_PALI),
    "llava_next_video": _family(
        "llava_next_video",
        "LlavaNextVideo",
        plain=Shape(64, 8, 2),
        odd=Shape(84, 14, 2),
        images=_next,
        bos="<s>",
    ),
    "video_llava": _family("video_llava", "VideoLlava", images=_clip, **_CLIP_LLAMA),
    "llava_onevision": _family(
        "llava_onevision", "LlavaOnevision", plain=Shape(64, 16), odd=Shape(70, 14), images=_onevision
    ),
    "idefics3": _family(
        "idefics3",
        "Idefics3",
        plain=Shape(64, 8, 2),
        odd=Shape(60, 10, 2),
        images=_split("idefics3", "Idefics3"),
        bos="<|begin_of_text|>",
        **_IDEFICS,
    ),
    "aya_vision": _family(
        "aya_vision",
        "AyaVision",
        plain=Shape(64, 8, 2),
        odd=Shape(60, 10, 2),
        images=_fixed("got_ocr2", "GotOcr2", HALF, HALF, crop_to_patches=True, max_patches=4),
        tokens=(
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "TILE_GLOBAL",
            *(f"TILE_{number}" for number in range(1, 5)),
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
        bos="<BOS_TOKEN>",
        tied=True,
    ),
    "video_llama_3": _family(
        "video_llama_3",
        "VideoLlama3",
        plain=Shape(64, 8, 2),
        odd=Shape(60, 6, 2),
        images=_video_llama,
        tokens=("<|image_pad|>", "<|video_pad|>"),
    ),
    "gemma4": _family(
        "gemma4",
        "Gemma4",
        plain=Shape(96, 8, 3),
        odd=Shape(60, 6, 2),
        images=_gemma4,
        tokens=("<|turn>", "<turn|>", "<|image|>", "<|video|>", "<|image>", "<image|>"),
        named={
            "image_token": "<|image|>",
            "video_token": "<|video|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
        },
        bos="<bos>",
        tied=True,
    ),
    "qwen3_vl_moe": _family("qwen3_vl_moe", "Qwen3VLMoe", **_QWEN3),
    "qwen3_5_moe": _family("qwen3_5_moe", "Qwen3_5Moe", bytewise=True, **_QWEN3),
    "qwen2_vl": _family("qwen2_vl", "Qwen2VL", **_QWEN2),
}
NAMES = list(FAMILIES)
VARIANTS = ("plain", "odd", "retied")


def variant_of(name: str, variant: str = "plain") -> Variant:
    """plain: as published; odd: other sizes and the other choices of the configuration; retied: the LLM's head is tied
    to its embeddings where published models have one of its own, and the other way round."""
    family = FAMILIES[name]
    odd = variant == "odd"
    return Variant(family.odd if odd else family.plain, odd, family.tied != (variant == "retied"))


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer and the family's own special tokens; one character is one id."""
    family, plain = FAMILIES[name], tiny_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bytewise(plain) if family.bytewise else plain.backend_tokenizer,
        pad_token=plain.pad_token,
        eos_token=plain.eos_token,
        unk_token=plain.unk_token,
        extra_special_tokens=[*plain.extra_special_tokens, *family.tokens],
        model_specific_special_tokens=family.named,
        chat_template=TEMPLATES[name],
    )
    if family.bos is not None:
        tokenizer.add_special_tokens({"bos_token": family.bos})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, tokenizer.bos_token_id)],
        )
    return tokenizer


def _bytewise(plain: PreTrainedTokenizerFast) -> Tokenizer:
    """The same vocabulary, spelt as byte-level tokenizers spell it."""
    spelling = {" ": "\u0120", "\n": "\u010a"}
    vocabulary = {spelling.get(token, token): number for token, number in plain.get_vocab().items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build(name: str, variant: str = "plain", seed: int = 0) -> tuple[Any, Preprocessing]:
    """A random model of the family, fp32 and in evaluation mode, and its preprocessing."""
    family, chosen = FAMILIES[name], variant_of(name, variant)
    tokenizer = tokenizer_of(name)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = getattr(transformers, family.model_class)(family.config(tokenizer, chosen))
    finally:
        torch.random.set_rng_state(state)
    _enlarge(model, seed)
    return model.eval(), Preprocessing(tokenizer, family.images(chosen.shape), TEMPLATES[name])


def write_folder(name: str, folder: Path, variant: str = "plain", seed: int = 0) -> None:
    """The model that `build` makes, written as its family is published."""
    model, preprocessing = build(name, variant, seed)
    folders.write(name, folder, model, preprocessing, variant_of(name, variant).shape)


@torch.no_grad()
def _enlarge(model: nn.Module, seed: int) -> None:
    """New weights that neither shrink nor blow up what passes through them; norms and biases off their usual values."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight.add_(0.1 * noise)
            elif isinstance(module, nn.Embedding) or "embed" in name or "token" in name or "table" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise / math.sqrt(_inputs(module, weight)))


def _inputs(module: nn.Module, weight: torch.Tensor) -> int:
    """How many values one output of this weight is summed up from."""
    whole = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return weight[0].numel() if whole else weight.shape[-1]
