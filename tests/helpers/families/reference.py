"""The base models run by transformers alone, on inputs laid out here as each family's own processor lays them out.

Nothing of the package is used but `Preprocessing`, which holds a tokenizer and an image processor. transformers' video
processors need torchvision, so frames come as they leave one: resized and normalised. A tag, `<video>` or `<image>`,
stands where a chat template would have put the medium.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from autogaze_mllm.mllm.preprocessing import Preprocessing

from . import layouts, native_layouts
from .configs import vocabulary_size
from .layouts import TAG, Layout, VideoClip

LAYOUTS: dict[str, type[Layout]] = {
    "llava": layouts.Llava,
    "llava_clip": layouts.Llava,
    "llava_next_video": layouts.LlavaNextVideo,
    "video_llava": layouts.VideoLlava,
    "llava_onevision": layouts.LlavaOnevision,
    "smolvlm": layouts.SmolVLM,
    "idefics3": layouts.Idefics3,
    "internvl": layouts.InternVL,
    "aya_vision": layouts.AyaVision,
    "video_llama_3": native_layouts.VideoLlama3,
    "gemma3": layouts.Gemma3,
    "paligemma": layouts.PaliGemma,
    "paligemma2": layouts.PaliGemma,
    "gemma4": native_layouts.Gemma4,
    "qwen2_vl": native_layouts.Qwen,
    "qwen2_5_vl": native_layouts.Qwen,
    "qwen3_vl": native_layouts.Qwen3,
    "qwen3_vl_moe": native_layouts.Qwen3,
    "qwen3_5": native_layouts.Qwen3,
    "qwen3_5_moe": native_layouts.Qwen3,
}
SECONDS_PER_FRAME = 0.5


def dense_inputs(
    name: str,
    model: Any,
    preprocessing: Preprocessing,
    text: str | Sequence[str],
    videos: Sequence[torch.Tensor] = (),
    images: Sequence[Image.Image] = (),
    *,
    times: Sequence[Sequence[float]] | None = None,
    padding_side: str = "left",
) -> dict[str, Any]:
    """What the base's forward and generate take for these prompts.

    text: a prompt or several, with tags; videos (T, 3, H, W) and images in the order of their tags over all prompts.
    times: seconds of each video's frames; default: two frames a second from 0 on.
    """
    layout = LAYOUTS[name](model, preprocessing)
    clips = [VideoClip(pixels, _times(times, number, len(pixels))) for number, pixels in enumerate(videos)]
    left, pictures = iter(clips), iter(images)
    texts, media = [], []
    for prompt in [text] if isinstance(text, str) else text:
        whole = layout.whole(prompt)
        tags = TAG.findall(whole)
        alone = tags.count("<image>") == 1
        expanded = [
            layout.video(next(left)) if tag == "<video>" else layout.image(next(pictures), alone) for tag in tags
        ]
        first, *after = TAG.split(whole)
        texts.append(first + "".join(run + more for (run, _), more in zip(expanded, after, strict=True)))
        media.append([tensors for _, tensors in expanded])
    assert next(left, None) is None, "a video without a tag"
    assert next(pictures, None) is None, "an image without a tag"
    batch = _pad([layout.ids(written) for written in texts], preprocessing.tokenizer.pad_token_id, padding_side)
    return batch | layout.types(batch["input_ids"]) | layout.tensors(media)


def _times(times: Sequence[Sequence[float]] | None, number: int, frames: int) -> list[float]:
    return list(times[number]) if times is not None else [SECONDS_PER_FRAME * frame for frame in range(frames)]


def _pad(rows: list[list[int]], pad: int, side: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        blank = longest - len(row)
        left, right = (blank, 0) if side == "left" else (0, blank)
        ids.append([pad] * left + row + [pad] * right)
        mask.append([0] * left + [1] * len(row) + [0] * right)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@torch.no_grad()
def dense_logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """(B, L, vocabulary): the base's own forward."""
    return model(**inputs).logits


def greedy(preprocessing: Preprocessing, steps: int) -> dict[str, Any]:
    """Settings of generate: so many steps, each the likeliest character, so that no answer ends early and none has
    placeholders in it. Gives the logits before that choice."""
    tokenizer = preprocessing.tokenizer
    tokens = tokenizer.convert_ids_to_tokens(range(vocabulary_size(tokenizer)))
    special = [number for number, token in enumerate(tokens) if token is None or len(token) > 1]
    return {
        "max_new_tokens": steps,
        "do_sample": False,
        "suppress_tokens": special,
        "output_logits": True,
        "return_dict_in_generate": True,
    }


@torch.no_grad()
def dense_step_logits(
    model: Any, inputs: dict[str, Any], preprocessing: Preprocessing, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The base's own generate: answers (B, steps) and the logits of every step (B, steps, vocabulary)."""
    answer = model.generate(**inputs, **greedy(preprocessing, steps))
    return answer.sequences[:, -steps:], torch.stack(answer.logits, dim=1)


def continued(name: str, inputs: dict[str, Any], answer: torch.Tensor) -> dict[str, Any]:
    """The same prompts with an answer (B, n) behind them, for one forward over both."""
    behind = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    causal = int(name.startswith("paligemma"))  # whose type 1 means: not a part of the prompt
    behind |= {types: torch.full_like(answer, causal) for types in ("token_type_ids", "mm_token_type_ids")}
    longer = {key: torch.cat([inputs[key], more], dim=1) for key, more in behind.items() if key in inputs}
    return inputs | longer
