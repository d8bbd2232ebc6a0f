"""A tiny model written as its family is published: which files there are, and what stands in which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autogaze_mllm.mllm.preprocessing import Preprocessing

from .configs import Shape

# Where it is not the name that the image processor has for itself.
IMAGE_PROCESSORS = {
    "video_llava": "VideoLlavaImageProcessor",
    "internvl": "GotOcr2ImageProcessorFast",
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "Qwen2VLImageProcessorFast"),
}
VIDEO_PROCESSORS = {
    "llava_next_video": "LlavaNextVideoVideoProcessor",
    "video_llava": "VideoLlavaVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "video_llama_3": "VideoLlama3VideoProcessor",
    "gemma4": "Gemma4VideoProcessor",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "Qwen2VLVideoProcessor"),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "Qwen3VLVideoProcessor"),
}
PROCESSORS = {
    "llava": "LlavaProcessor",
    "llava_clip": "LlavaProcessor",
    "llava_next_video": "LlavaNextVideoProcessor",
    "video_llava": "VideoLlavaProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
    "smolvlm": "SmolVLMProcessor",
    "idefics3": "Idefics3Processor",
    "internvl": "InternVLProcessor",
    "aya_vision": "AyaVisionProcessor",
    "video_llama_3": "VideoLlama3Processor",
    "gemma3": "Gemma3Processor",
    "paligemma": "PaliGemmaProcessor",
    "paligemma2": "PaliGemmaProcessor",
    "gemma4": "Gemma4Processor",
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "Qwen3VLProcessor"),
}
IN_ONE_FILE = ("gemma4",)  # published with all parts of the processor in processor_config.json


def write(name: str, folder: Path, model: Any, preprocessing: Preprocessing, shape: Shape) -> None:
    model.save_pretrained(folder)
    preprocessing.tokenizer.save_pretrained(folder)  # chat_template.jinja, too
    images = json.loads(preprocessing.image_processor.to_json_string())
    images["image_processor_type"] = IMAGE_PROCESSORS.get(name, images["image_processor_type"])
    whole = {"processor_class": PROCESSORS[name]} | _settings(name, shape)
    video = _video_settings(name, images, shape) if name in VIDEO_PROCESSORS else None
    if name in IN_ONE_FILE:
        _write(folder / "processor_config.json", whole | {"image_processor": images, "video_processor": video})
        return
    _write(folder / "preprocessor_config.json", images | {"processor_class": PROCESSORS[name]})
    _write(folder / "processor_config.json", whole)
    if video is not None:
        _write(folder / "video_preprocessor_config.json", video | {"processor_class": PROCESSORS[name]})


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _settings(name: str, shape: Shape) -> dict[str, Any]:
    """What the processor itself must know to lay out a picture."""
    if name.startswith("llava") or name == "video_llava":
        clip = name in ("llava_clip", "llava_next_video", "video_llava")
        return {
            "patch_size": shape.patch,
            "num_additional_image_tokens": int(clip),
            "vision_feature_select_strategy": "default" if clip else "full",
        }
    counted = {"smolvlm": "image_seq_len", "idefics3": "image_seq_len", "internvl": "image_seq_length"}
    if name in counted or name == "gemma3":
        return {counted.get(name, "image_seq_length"): shape.tokens**2}
    if name == "aya_vision":
        return {"patch_size": shape.patch, "downsample_factor": shape.merge, "img_size": shape.side}
    return {}


def _video_settings(name: str, images: dict[str, Any], shape: Shape) -> dict[str, Any]:
    shared = (
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "do_resize",
        "image_mean",
        "image_std",
        "size",
        "resample",
    )
    settings = {key: images[key] for key in shared if key in images}
    if name.startswith("qwen") or name == "video_llama_3":
        settings |= {"patch_size": shape.patch, "merge_size": shape.merge, "fps": 2}
        settings["temporal_patch_size"] = 2 if name.startswith("qwen") else 1
    return settings | {"video_processor_type": VIDEO_PROCESSORS[name]}
