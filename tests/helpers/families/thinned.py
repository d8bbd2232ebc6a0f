"""The base on a video of which some tokens are left out, without a gazed tower: what gaze must equal at one scale.

    logits = thinned_logits(name, model, inputs, kept, merge)

The dense tower runs on whole frames, but its attention cannot see the patches of tokens that are left out. Their
columns are then taken out of what goes into the LLM, with all that belongs to a column: embeddings, deepstack rows,
masks, and multimodal positions, which stay those of the whole frames. (So do the distances that a sliding window
counts: with a window shorter than the prompt, a thinned prompt sees less here than by itself.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.vision_utils import get_vision_window_index

HIDING = "sdpa_hiding"
TOWERS = ("visual", "video_tower", "vision_tower", "vision_model")


def class_tokens(name: str, model: Any) -> tuple[int, int]:
    """How many class tokens a frame has in the tower, and in the prompt."""
    vision = model.config.vision_config.model_type
    inside = int(vision in ("clip_vision_model", "internvl_vision"))
    full = getattr(model.config, "vision_feature_select_strategy", None) == "full"
    return inside, int(vision == "clip_vision_model" and (full or name == "video_llava"))


@torch.no_grad()
def thinned_logits(name: str, model: Any, inputs: dict[str, Any], kept: torch.Tensor, merge: int) -> torch.Tensor:
    """Logits (1, what is left, vocabulary) of one prompt with videos of one size and no images.

    inputs: from `dense_inputs`. kept: (pictures, rows, columns) bool, tokens of the frames or tubelets. merge: patches
    along a token. Class tokens are always kept.
    """
    inside, told = class_tokens(name, model)
    rows = F.pad(kept.flatten(1), [told, 0], value=True).flatten()
    ids, video = inputs["input_ids"][0], getattr(model.config, "video_token_id", None)
    places = ids == (model.config.image_token_id if video is None else video)
    left = torch.ones_like(places)
    left[places] = rows
    tower = next(getattr(model.model, part) for part in TOWERS if hasattr(model.model, part))
    llm = model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model

    def thin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {key: _thinned(key, value, left, rows) for key, value in kwargs.items()}

    hook = llm.register_forward_pre_hook(thin, with_kwargs=True)
    try:
        with _hiding(tower, _visible(model.config.vision_config, kept, merge, inside)):
            return model(**inputs, use_cache=False).logits
    finally:
        hook.remove()


def _thinned(key: str, value: Any, left: torch.Tensor, rows: torch.Tensor) -> Any:
    """An argument of the LLM without the columns that are not left."""
    if isinstance(value, dict):
        return {name: _thinned(key, part, left, rows) for name, part in value.items()}
    if key == "deepstack_visual_embeds" and value is not None:
        return [layer[rows] for layer in value]
    if not isinstance(value, torch.Tensor):
        return value
    if key == "attention_mask" and value.dim() == 4:
        return value[:, :, left][..., left]
    if key == "position_ids" and value.dim() == 2:  # plain ones count what is there
        return value[:, : int(left.sum())]
    if key in ("attention_mask", "position_ids"):
        return value[..., left]
    if key in ("inputs_embeds", "per_layer_inputs", "visual_pos_masks"):
        return value[:, left]
    return value


def _visible(vision: Any, kept: torch.Tensor, merge: int, inside: int) -> torch.Tensor:
    """Which rows of the tower may be seen, (all rows of all frames,) in the order in which it has them."""
    if "qwen" in vision.model_type or vision.model_type == "video_llama_3_vision":
        groups = kept.flatten()
        if getattr(vision, "window_size", None):
            grid = torch.tensor([[len(kept), kept.shape[1] * merge, kept.shape[2] * merge]])
            groups = groups[get_vision_window_index(grid, merge, vision.window_size, vision.patch_size)[0]]
        return groups.repeat_interleave(merge**2)  # a group's patches follow each other
    patches = kept.repeat_interleave(merge, 1).repeat_interleave(merge, 2).flatten(1)
    return F.pad(patches, [inside, 0], value=True).flatten()


@contextmanager
def _hiding(tower: Any, visible: torch.Tensor) -> Iterator[None]:
    """Attention of the tower sees no other keys than these. A tower may hand over its rows part by part."""
    seen: dict[nn.Module, int] = {}

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        start = seen.get(module, 0)
        seen[module] = start + len(key) * key.shape[2]
        allowed = visible[start : seen[module]].view(len(key), 1, 1, -1)
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)  # not -inf: nothing may be left in a window
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask, -1e9)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
        return found.transpose(1, 2).contiguous(), None

    AttentionInterface.register(HIDING, attention)
    AttentionMaskInterface.register(HIDING, sdpa_mask)
    before = tower.config._attn_implementation
    tower.config._attn_implementation = HIDING
    try:
        yield
    finally:
        tower.config._attn_implementation = before
    assert seen and all(rows == len(visible) for rows in seen.values()), "the tower had other rows than expected"
