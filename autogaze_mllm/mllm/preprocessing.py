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
from transformers import AutoConfig, AutoTokenizer

from ..common.errors import InputError, first_line
from ..common.files import find_file, read_json
from .native.llama_tokenizer import read_llama_tokenizer

# Image processors without a Pillow version, and one with the same steps that has it.
SAME_AS = {"VideoLlavaImageProcessor": "CLIPImageProcessor"}


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
        tokenizer = read_llama_tokenizer(source, tokenizer_folder, **hub)
        try:
            if tokenizer is None:
                options = {"trust_remote_code": False, **hub}  # no code of a repository is run, or asked about
                if model_type is not None:
                    options["config"] = AutoConfig.for_model(model_type)
                tokenizer = AutoTokenizer.from_pretrained(source, subfolder=tokenizer_folder, **options)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{source}: tokenizer cannot be loaded: {first_line(error)}") from error
        image_processor = _load_image_processor(source, image_folder, hub)
        template = tokenizer.chat_template
        if template is None:
            older = _inside(tokenizer_folder, "chat_template.json")  # where it was kept earlier
            stored = find_file(source, older, required=False, **hub)
            template = read_json(stored).get("chat_template") if stored else None
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
        stored = read_json(path)
    else:
        path = find_file(source, _inside(folder, "processor_config.json"), **hub)  # where newer repositories keep it
        assert path is not None
        stored = read_json(path).get("image_processor") or {}
    name = str(stored.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    kind = _pillow_version(SAME_AS.get(name, name)) if name else None
    if kind is None:
        raise InputError(f"{path}: image_processor_type {name or None!r} is not one that transformers has for Pillow")
    unused = ("image_processor_type", "processor_class", "auto_map")
    return kind(**{key: value for key, value in stored.items() if key not in unused})


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
