"""Tokenizer and image processor of a base model, without torchvision.

transformers' processors of video models insist on a torchvision video processor. Only the two parts below are needed,
so they are loaded on their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer

from ..errors import InputError
from ..files import find_file, read_json


@dataclass
class Preprocessing:
    """tokenizer and image_processor as transformers has them; chat_template: jinja text or None."""

    tokenizer: Any
    image_processor: Any
    chat_template: str | None = None

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
    def from_pretrained(cls, source: str | Path, **hub: Any) -> Preprocessing:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{source}: tokenizer cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        image_processor = _load_image_processor(source, hub)
        template = tokenizer.chat_template
        if template is None:
            stored = find_file(source, "chat_template.json", required=False, **hub)  # the older place for it
            template = read_json(stored).get("chat_template") if stored else None
        return cls(tokenizer, image_processor, template)

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder, chat_template=self.chat_template)
        self.image_processor.save_pretrained(folder)


def _load_image_processor(source: str | Path, hub: dict[str, Any]) -> Any:
    """The image processor that the repository names, in its Pillow version, which needs no torchvision."""
    path = find_file(source, "preprocessor_config.json", required=False, **hub)
    if path is not None:
        stored = read_json(path)
    else:
        path = find_file(source, "processor_config.json", **hub)  # where newer repositories keep it
        assert path is not None
        stored = read_json(path).get("image_processor") or {}
    name = str(stored.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    kind = getattr(transformers, f"{name}Pil", None) if name else None
    if kind is None:
        raise InputError(f"{path}: image_processor_type {name or None!r} is not one that transformers has for Pillow")
    return kind(
        **{key: value for key, value in stored.items() if key not in ("image_processor_type", "processor_class")}
    )
