"""VILA-style folders (VILA-1.5, LongVILA, NVILA), loaded natively.

Dense video: every frame at the tower's image size through the projector's own spatial merge, with the texts that the
configuration puts around it ("\\n" after each frame unless it says otherwise). Gazed video: a projector that merges
k x k windows gets k * k gazed tokens in gaze order; nothing stands between the pictures. Images are resized to the
tower's square: tiles of several sizes, which some of these models can cut images into, are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ....common.errors import InputError
from ....common.storage.files import find_file, read_json
from ...media import Media
from ...preprocessing import Preprocessing
from ..chatml import chatml
from .base import NativeFamily

# In VILA's order, which decides their ids; its checkpoints hold them only sometimes.
MEDIA_TOKENS = ("<vila/sentinel>", "<image>", "<vila/video>")
# System lines that the Llama checkpoints were trained with.
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class VilaFamily(NativeFamily):
    model_type = "vila"
    title = "VILA-style folders"
    example = "Efficient-Large-Model/VILA1.5-3b"

    def __init__(self, base: Any, preprocessing: Preprocessing) -> None:
        super().__init__(base, preprocessing)
        known = self.tokenizer.get_vocab()
        missing = [token for token in MEDIA_TOKENS[1:] if token not in known]
        if missing:
            raise InputError(f"the tokenizer has no {missing[0]}: load it from the model's folder")
        self._media_ids = [known[token] for token in MEDIA_TOKENS[1:]]
        self._format = chatml if "<|im_start|>" in known else llama_3 if "<|start_header_id|>" in known else vicuna

    @classmethod
    def load_preprocessing(cls, source: str | Path, **hub: Any) -> Preprocessing:
        found = Preprocessing.from_pretrained(source, tokenizer_folder="llm", image_folder="vision_tower", **hub)
        known = found.tokenizer.get_vocab()
        found.tokenizer.add_tokens([token for token in MEDIA_TOKENS if token not in known], special_tokens=True)
        path = find_file(source, "config.json", **hub)
        assert path is not None
        if isinstance(read_json(path).get("chat_template"), str):  # the name of one of VILA's own
            found.chat_template = None
        return found

    @property
    def image_token_id(self) -> int:
        return self._media_ids[0]

    @property
    def video_token_id(self) -> int:
        return self._media_ids[1]

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        around = self.config.around_image
        count = self._length(around.start, around.end) + self.projector.dense_count(self.dense_patches)
        return Media([count], {"pixel_values": self.image_pixels(image)})

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        around = self.config.around_frame
        side = round(self.projector.dense_count(self.dense_patches) ** 0.5)
        total = 0
        for times, rows, columns in around.pool_sizes:
            tokens = -(-side // rows) * -(-side // columns) + self._length(around.start, around.end)
            total += -(-frames // times) * tokens + self._length(around.sep)
        return total

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        (pixels,) = content.values()
        features = self.projector.dense(self.base.encode_images(pixels))  # (F, n, D)
        if "pixel_values" in content:
            around = self.config.around_image
            return self._framed(features, around.start, around.end)
        around = self.config.around_frame
        parts = []
        for size in around.pool_sizes:
            parts += [self._framed(pooled(features, size), around.start, around.end), self._embedded(around.sep)]
        return torch.cat(parts)

    def _framed(self, features: torch.Tensor, start: str, end: str) -> torch.Tensor:
        """(F, n, D) -> (F * (n + texts), D)."""
        before, after = (self._embedded(text).expand(len(features), -1, -1) for text in (start, end))
        return torch.cat([before, features, after], dim=1).flatten(0, 1)

    def _embedded(self, text: str) -> torch.Tensor:
        """A text's own embeddings (length, D)."""
        ids = torch.tensor(self._ids(text), dtype=torch.long, device=self.device)
        return self.base.get_input_embeddings()(ids)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _length(self, *texts: str) -> int:
        return sum(len(self._ids(text)) for text in texts)

    def chat(self, text: str, first: bool = True) -> str:
        return self._format(text, first)

    def answer(self, text: str) -> str:
        if self._format is vicuna:
            return f" {text}{self.tokenizer.eos_token}"
        return text + ("<|im_end|>" if self._format is chatml else "<|eot_id|>")


def llama_3(text: str, first: bool = True) -> str:
    turns = [("system", LLAMA_3_SYSTEM), ("user", text)] if first else [("user", text)]
    rendered = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>" for role, said in turns)
    start = "<|begin_of_text|>" if first else ""
    return f"{start}{rendered}<|start_header_id|>assistant<|end_header_id|>\n\n"


def vicuna(text: str, first: bool = True) -> str:
    return f"{VICUNA_SYSTEM} USER: {text} ASSISTANT:" if first else f"USER: {text} ASSISTANT:"


def pooled(features: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Averages over (frames, rows, columns) of features (F, side * side, D); the last of each may hold fewer."""
    if size == (1, 1, 1):
        return features
    side = round(features.shape[1] ** 0.5)
    volume = features.unflatten(1, (side, side)).permute(3, 0, 1, 2).float()
    means = F.avg_pool3d(volume, size, ceil_mode=True)  # (D, F', rows, columns)
    return means.permute(1, 2, 3, 0).flatten(1, 2).to(features.dtype)
