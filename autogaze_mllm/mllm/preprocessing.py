"""Tokenizer and image processor of a base model, without torchvision.

transformers' processors of video models insist on a torchvision video processor. Only the two parts below are needed,
so they are loaded on their own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

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
        noisy = logging.getLogger("transformers")
        level = noisy.level
        noisy.setLevel(logging.ERROR)  # it warns that torchvision is missing, which is how it is meant
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **hub)
            image_processor = AutoImageProcessor.from_pretrained(source, **hub)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{source}: tokenizer or image processor cannot be loaded: {reason}") from error
        finally:
            noisy.setLevel(level)
        template = tokenizer.chat_template
        if template is None:
            stored = find_file(source, "chat_template.json", required=False, **hub)  # the older place for it
            template = read_json(stored).get("chat_template") if stored else None
        return cls(tokenizer, image_processor, template)

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder, chat_template=self.chat_template)
        self.image_processor.save_pretrained(folder)
