"""Tokenizer and image processor of a base model, without torchvision.

transformers' processors of video models insist on a torchvision video processor. Only the two parts below are needed,
so they are loaded on their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, BaseImageProcessor

from ..common.errors import InputError, first_line
from ..common.storage.files import find_file, read_fields
from ..common.storage.json_text import shown
from .native.llama_tokenizer import read_llama_tokenizer

# Image processors without a Pillow version, and one with the same steps that has it.
SAME_AS = {"VideoLlavaImageProcessor": "CLIPImageProcessor"}

LARGEST_SIDE = 1 << 14  # pixels
SIZES = ("size", "crop_size", "pad_size")
SWITCHES = (
    "do_convert_rgb",
    "do_resize",
    "default_to_square",
    "do_rescale",
    "do_normalize",
    "do_pad",
    "do_center_crop",
)
IMAGE_KEYS: dict[str, Any] = {
    **dict.fromkeys(SIZES, int | dict[str, int | None] | list[int] | None),
    **dict.fromkeys(SWITCHES, bool | None),
    **dict.fromkeys(("image_mean", "image_std"), tuple[float, float, float] | None),
    "resample": int | None,
    "rescale_factor": float | None,
}
UNUSED = {"image_processor_type", "processor_class", "auto_map"}
UNUSED |= {"data_format", "input_data_format", "device", "return_tensors", "disable_grouping"}  # of a call


@dataclass
class Preprocessing:
    """tokenizer and image_processor as transformers has them; chat_template: jinja text or None.

    tokenizer_folder, image_folder: sub-folders of the model's folder that they are kept in.
    """

    tokenizer: Any
    image_processor: Any
    chat_template: str | None = None
    tokenizer_folder: str = ""
    image_folder: str = ""

    @classmethod
    def of(cls, processor: Any) -> Preprocessing:
        """From a transformers processor, or anything else with the two parts."""
        if isinstance(processor, cls):
            return processor
        tokenizer = getattr(processor, "tokenizer", None)
        image_processor = getattr(processor, "image_processor", None)
        if tokenizer is None or image_processor is None:
            raise InputError(f"processor {type(processor).__name__} has no tokenizer or no image_processor")
        template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        return cls(tokenizer, image_processor, template)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer_folder: str = "",
        image_folder: str = "",
        model_type: str | None = None,
        **hub: Any,
    ) -> Preprocessing:
        """model_type: that of the LLM, where config.json names a model that transformers does not have."""
        try:
            tokenizer = read_llama_tokenizer(source, tokenizer_folder, **hub)
            if tokenizer is None:
                options: dict[str, Any] = {**hub, "trust_remote_code": False}  # no code is run, or asked about
                if model_type is not None:
                    options["config"] = AutoConfig.for_model(model_type)
                tokenizer = AutoTokenizer.from_pretrained(source, subfolder=tokenizer_folder, **options)
        except InputError:
            raise
        except Exception as error:  # damaged files, and keys of wrong types, come as errors of many types
            raise InputError(f"{source}: tokenizer cannot be loaded: {first_line(error)}") from error
        if not isinstance(tokenizer.model_max_length, (int, float)):
            limit = shown(tokenizer.model_max_length)
            raise InputError(f"{source}: tokenizer_config.json: 'model_max_length' must be a number, got {limit}")
        image_processor = _load_image_processor(source, image_folder, hub)
        template = tokenizer.chat_template
        if template is None:
            older = _inside(tokenizer_folder, "chat_template.json")  # where it was kept earlier
            stored = find_file(source, older, required=False, **hub)
            template = read_fields(stored).get("chat_template", str | None, None) if stored else None
        return cls(tokenizer, image_processor, template, tokenizer_folder, image_folder)

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(Path(folder) / self.tokenizer_folder, chat_template=self.chat_template)
        self.image_processor.save_pretrained(Path(folder) / self.image_folder)


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _load_image_processor(source: str | Path, folder: str, hub: dict[str, Any]) -> Any:
    """The image processor that the repository names, in its Pillow version, which needs no torchvision."""
    path = find_file(source, _inside(folder, "preprocessor_config.json"), required=False, **hub)
    if path is not None:
        stored = read_fields(path)
    else:
        path = find_file(source, _inside(folder, "processor_config.json"), **hub)  # where newer repositories keep it
        assert path is not None
        stored = read_fields(path).object("image_processor")
    named = stored.get("image_processor_type", str, "")
    name = named.removesuffix("Fast").removesuffix("Pil")
    kind = _pillow_version(SAME_AS.get(name, name)) if name else None
    if not (isinstance(kind, type) and issubclass(kind, BaseImageProcessor)):
        raise InputError(f"{path}: image_processor_type {named or None!r} is not one that transformers has for Pillow")
    keys = kind.valid_kwargs.__annotations__.keys()
    chosen = {  # other keys are kept as they are, but none takes the place of something that the class has
        key: stored.get(key, IMAGE_KEYS.get(key, Any))
        for key in stored.values.keys() - UNUSED
        if key in keys or not (hasattr(kind, key) or key.startswith("_"))
    }
    largest = max((side for key in SIZES for side in _sides(chosen.get(key))), default=0)
    if largest > LARGEST_SIDE:
        raise InputError(f"{path}: pictures of {largest} pixels a side; at most {LARGEST_SIDE} are possible")
    if min(chosen.get("image_std") or (1,)) <= 0:
        raise InputError(f"{path}: 'image_std' must be above 0, got {shown(chosen['image_std'])}")
    try:
        return kind(**chosen)
    except Exception as error:  # values that do not go together
        raise InputError(f"{path}: the image processor cannot be made: {first_line(error)}") from error


def _sides(size: Any) -> list[int]:
    found = size.values() if isinstance(size, dict) else size if isinstance(size, list) else [size]
    return [side for side in found if side is not None]


def _pillow_version(name: str) -> Any:
    """The class of an image processor that works with Pillow alone, or None where transformers has none."""
    kind = getattr(transformers, f"{name}Pil", None)
    if kind is None:
        return None
    # transformers 5.17 gives stand-ins for two of them, which ask for torchvision. Their own modules do not.
    file = kind.__module__.rpartition(".")[2]
    return getattr(
        import_module(f"transformers.models.{file.removeprefix('image_processing_pil_')}.{file}"), kind.__name__
    )
