"""The references lay media out in text as transformers' own processors do, in the version that is installed.

Those processors cannot be made without torchvision. What writes the text of a medium needs only a few of their
attributes, so that method is called on a bare object with these.
"""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from ...helpers.families.folders import PROCESSORS
from ...helpers.families.layouts import in_words
from ...helpers.families.models import FAMILIES, NAMES, build, variant_of
from ...helpers.families.reference import LAYOUTS, VideoClip, dense_inputs

SIDE_TOKENS = 4  # of every family's plain picture
PATCHES = SIDE_TOKENS**2

_QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_processor": SimpleNamespace(merge_size=2),
    "video_processor": SimpleNamespace(merge_size=2, temporal_patch_size=2),
}
_IDEFICS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "global_image_tag": "<global-img>",
    "image_seq_len": PATCHES,
}
_CLIP = {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
_PALI = {"image_token": "<image>", "image_seq_length": PATCHES}
_BOI = "<start_of_image>" + PATCHES * "<image_soft_token>" + "<end_of_image>"
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "llava": {"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"},
    "llava_clip": _CLIP,
    "llava_next_video": _CLIP,
    "video_llava": _CLIP,
    "llava_onevision": {
        "num_image_tokens": PATCHES,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    },
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "image_token": "<IMG_CONTEXT>",
        "image_seq_length": PATCHES,
    },
    "aya_vision": {
        "patch_size": 16,  # of a token
        "img_size": 64,
        "start_of_img_token": "<|START_OF_IMG|>",
        "end_of_img_token": "<|END_OF_IMG|>",
        "img_patch_token": "<|IMG_PATCH|>",
        "tile_token": "TILE",
        "tile_global_token": "TILE_GLOBAL",
    },
    "video_llama_3": _QWEN | {"image_processor": SimpleNamespace(merge_size=1)},
    "gemma3": {"full_image_sequence": f"\n\n{_BOI}\n\n"},
    "paligemma": _PALI,
    "paligemma2": _PALI,
    "gemma4": {
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
    },
    **{name: _QWEN for name in NAMES if name.startswith("qwen")},
}
# The others know images only: a video is its frames, each an image.
VIDEOS = ["llava_next_video", "video_llava", "llava_onevision", "smolvlm", "internvl", "video_llama_3", "gemma4"]
VIDEOS += [name for name in NAMES if name.startswith("qwen")]

built = functools.lru_cache(maxsize=None)(build)


def processor_of(name: str) -> tuple[Any, Any]:
    """The processor's class, and an object with what its methods read."""
    model_type = "qwen3_vl" if name.startswith("qwen3") else FAMILIES[name].model_type
    try:
        module = importlib.import_module(f"transformers.models.{model_type}.processing_{model_type}")
    except ModuleNotFoundError as error:  # Gemma 4's of transformers 5.17
        pytest.skip(f"this version's processor cannot even be read without {error.name}")
    kind = getattr(module, PROCESSORS[name])
    shared = {"patch_size": variant_of(name).shape.patch, "image_token": "<image>", "video_token": "<video>"}
    own = SimpleNamespace(**shared | {"image_processor": built(name)[1].image_processor} | ATTRIBUTES[name])
    for helper in dir(kind):
        if helper.startswith(("_calculate", "_get_number", "_get_unpadded")):
            setattr(own, helper, functools.partial(getattr(kind, helper), own))
    return kind, own


def layout_of(name: str) -> Any:
    return LAYOUTS[name](*built(name))


def marked(name: str, text: str) -> str:
    """What the chat templates of some families write around a medium."""
    return f"<|vision_start|>{text}<|vision_end|>" if name.startswith("qwen") else text


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(name, monkeypatch):
    side = variant_of(name).shape.side
    clip = VideoClip(torch.zeros(5, 3, side, side), [0.0, 0.5, 1.0, 1.5, 2.0])
    metadata = VideoMetadata(total_num_frames=10, fps=4.0, frames_indices=[0, 2, 4, 6, 8], duration=2.5)
    inputs = {
        "video_metadata": [metadata],
        "video_grid_thw": torch.tensor([[3 if name.startswith("qwen") else 5, 8, 8]]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": torch.ones(5 * PATCHES, dtype=torch.bool),
        "num_soft_tokens_per_video": [PATCHES],
        "pixel_values_videos": clip.pixels[None].numpy(),
        "pixel_values": clip.pixels[None],
    }
    if name == "smolvlm":  # what it counts frames with is not installed
        module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
        monkeypatch.setattr(module, "num2words", {5: "five"}.get)
    kind, own = processor_of(name)
    written = kind.replace_video_token(own, inputs, 0)
    # In Qwen3 every tubelet brings its own markers, and the template's would stand around the timestamps.
    expected = written if name.startswith("qwen3") else marked(name, written)
    assert layout_of(name).video(clip)[0] == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VIDEOS])
def test_a_video_of_a_family_without_videos_is_its_frames(name):
    side = variant_of(name).shape.side
    inputs = {"pixel_values": torch.zeros(1, 3, side, side), "rows": [[0]], "cols": [[0]]}
    kind, own = processor_of(name)
    frame = kind.replace_image_token(own, inputs | {"num_patches": [1], "num_crops": [0]}, 0)
    assert layout_of(name).video(VideoClip(torch.zeros(3, 3, side, side), [0.0, 0.5, 1.0]))[0] == 3 * frame


@pytest.mark.parametrize("size", [(64, 64), (130, 90), (70, 150)])
@pytest.mark.parametrize("name", NAMES)
def test_images(name, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, layout = Image.fromarray(noise), layout_of(name)
    more = {"return_row_col_info": True} if name in ("smolvlm", "idefics3") else {}
    inputs = layout.processed(image, **more) | {"batch_num_images": [1]}
    inputs["pixel_values_images"] = inputs["pixel_values"]  # Video-LLaVA's name for them in transformers 5.17
    kind, own = processor_of(name)
    assert layout.image(image, alone=True)[0] == marked(name, kind.replace_image_token(own, inputs, 0))


@pytest.mark.parametrize("name", [*(name for name in NAMES if name.startswith("qwen")), "video_llama_3", "gemma4"])
def test_frames_are_cut_into_rows_as_images_are(name):
    layout, shape = layout_of(name), variant_of(name).shape
    token = shape.patch * shape.merge
    noise = np.random.default_rng(0).integers(0, 256, (2 * token, 3 * token, 3), dtype=np.uint8)
    more = {"merge_size": 2} if name == "video_llama_3" else {}
    made = layout.image_processor(images=[Image.fromarray(noise)], return_tensors="pt", do_resize=False, **more)
    mean, std = (
        torch.tensor(getattr(layout.image_processor, part))[:, None, None] for part in ("image_mean", "image_std")
    )
    pixels = (torch.from_numpy(noise).permute(2, 0, 1) / 255 - mean) / std
    frames = 2 if name.startswith("qwen") else 1  # an image is a tubelet of itself, twice
    _, tensors = layout.video(VideoClip(pixels.expand(frames, -1, -1, -1), [0.0] * frames))
    rows = tensors["pixel_values_videos"].flatten(0, -2)
    assert torch.allclose(rows, made["pixel_values"].flatten(0, -2)[: len(rows)], atol=1e-6)
    if name == "gemma4":
        where = made["image_position_ids"].flatten(0, -2)[: len(rows)]
        assert torch.equal(tensors["video_position_ids"].flatten(0, -2), where)
    else:
        assert torch.equal(tensors["video_grid_thw"], made["image_grid_thw"])


def test_of_several_images_llava_onevision_takes_each_as_a_whole():
    layout = layout_of("llava_onevision")
    kind, own = processor_of("llava_onevision")
    written = kind.replace_image_token(own, {"batch_num_images": [2]}, 1)
    assert layout.image(Image.new("RGB", (130, 90)), alone=False)[0] == written


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_a_prompt_of_paligemma_begins_behind_its_pictures(name):
    model, preprocessing = built(name)
    image = Image.new("RGB", (64, 64))
    inputs = dense_inputs(name, model, preprocessing, "<image><image>what?", images=[image, image])
    text = preprocessing.tokenizer.decode(inputs["input_ids"][0])
    kind, own = processor_of(name)
    assert text == 2 * kind.replace_image_token(own, {}, 0) + "<bos>what?\n"


CHATS = {
    "llava_clip": "USER: <image>\nWhat? ASSISTANT:",
    "llava_onevision": "<|im_start|>user <image>\nWhat?<|im_end|><|im_start|>assistant\n",
    "qwen3_vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n",
    "smolvlm": "<|im_start|>User:<image>What?<end_of_utterance>\nAssistant:",
    "internvl": "<|im_start|>user\n<IMG_CONTEXT>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
    "gemma3": "<bos><start_of_turn>user\n<start_of_image>What?<end_of_turn>\n<start_of_turn>model\n",
    "aya_vision": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>What?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
}


@pytest.mark.parametrize("name", CHATS)
def test_chats(name):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    tokenizer = built(name)[1].tokenizer
    assert tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True) == CHATS[name]


@pytest.mark.parametrize("number, words", [(1, "one"), (12, "twelve"), (20, "twenty"), (64, "sixty-four")])
def test_frames_are_counted_in_words(number, words):
    assert in_words(number) == words
