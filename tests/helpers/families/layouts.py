"""How each family's processor writes a medium into a prompt, and which tensors its base takes with it.

One class a family; those of native resolution have a file of their own. `video` and `image` give the text that replaces
the tag, placeholders in it, and the medium's tensors; `tensors` joins those of all prompts into what forward takes.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image

from autogaze_mllm.mllm.preprocessing import Preprocessing

TAG = re.compile(r"<(?:video|image)>")
Piece = tuple[str, dict[str, Any]]


@dataclass
class VideoClip:
    """pixels (T, 3, H, W), resized and normalised; times: seconds of the frames."""

    pixels: torch.Tensor
    times: list[float]

    @property
    def seconds_per_frame(self) -> float:
        return self.times[1] - self.times[0] if len(self.times) > 1 else 0.5

    @property
    def duration(self) -> float:
        return len(self.times) * self.seconds_per_frame


class Layout:
    """A family whose frames and images are pictures of one size, each a run of `<image>`."""

    placeholder: ClassVar[str] = "<image>"
    add_special_tokens: ClassVar[bool] = True

    def __init__(self, model: Any, preprocessing: Preprocessing) -> None:
        self.model, self.config = model, model.config
        self.tokenizer, self.image_processor = preprocessing.tokenizer, preprocessing.image_processor

    def whole(self, text: str) -> str:
        """What is done to a whole prompt before its tags are replaced."""
        return text

    def ids(self, text: str) -> list[int]:
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        return self.tokenizer(text, add_special_tokens=self.add_special_tokens and not begun)["input_ids"]

    def processed(self, image: Image.Image, **more: Any) -> dict[str, Any]:
        return dict(self.image_processor(images=[image], return_tensors="pt", **more))

    @property
    def per_picture(self) -> int:
        """Tokens of one picture."""
        vision = self.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def picture(self, number: int) -> str:
        """The text of frame `number` of a video."""
        return self.placeholder * self.per_picture

    def video(self, clip: VideoClip) -> Piece:
        text = "".join(self.picture(number) for number in range(len(clip.pixels)))
        return text, {"pixel_values": clip.pixels}

    def image(self, image: Image.Image, alone: bool) -> Piece:
        """alone: it is the only image of its prompt."""
        return self.placeholder * self.per_picture, {"pixel_values": self.processed(image)["pixel_values"]}

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the base must be told of each id."""
        return {}

    def tensors(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """The media of all prompts -> arguments of forward."""
        return joined([medium for row in rows for medium in row])

    def takes(self, name: str) -> bool:
        """Whether this version's forward has an argument of this name."""
        return name in inspect.signature(self.model.forward).parameters


def joined(media: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors of one name, one behind the other."""
    names = dict.fromkeys(name for medium in media for name in medium)
    return {name: torch.cat([medium[name] for medium in media if name in medium]) for name in names}


class Llava(Layout):
    @property
    def per_picture(self) -> int:
        first = self.config.vision_config.model_type == "clip_vision_model"
        dropped = self.config.vision_feature_select_strategy == "default"
        return super().per_picture + first - dropped


class Idefics3(Layout):
    """Every picture stands between two markers; large images have tiles. A prompt's pictures are one row of what
    forward takes."""

    @property
    def per_picture(self) -> int:
        return super().per_picture // self.config.scale_factor**2

    def picture(self, number: int) -> str:
        mark = "<fake_token_around_image>"
        return f"{mark}<global-img>{self.placeholder * self.per_picture}{mark}"

    def image(self, image: Image.Image, alone: bool) -> Piece:
        made = self.processed(image, return_row_col_info=True)
        text = ""
        for row in range(made["rows"][0][0]):
            for column in range(made["cols"][0][0]):
                text += (
                    f"<fake_token_around_image><row_{row + 1}_col_{column + 1}>{self.placeholder * self.per_picture}"
                )
            text += "\n"
        if text:
            text += "\n"
        return text + self.picture(0), {"pixel_values": made["pixel_values"][0]}

    def tensors(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """(B, pictures, 3, S, S); a prompt with fewer than the longest gets pictures of zeros, which the base drops."""
        if not any(rows):
            return {}
        pictures = [torch.cat([medium["pixel_values"] for medium in row]) for row in rows]
        most = max(map(len, pictures))
        filled = [torch.cat([some, torch.zeros(most - len(some), *some.shape[1:])]) for some in pictures]
        return {"pixel_values": torch.stack(filled)}


class SmolVLM(Idefics3):
    def video(self, clip: VideoClip) -> Piece:
        seconds = int(clip.duration)
        length = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        text = f"You are provided the following series of {in_words(len(clip.times))} frames"
        text += f" from a {length} [H:MM:SS] video.\n"
        for number, time in enumerate(clip.times):
            text += f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:{self.picture(number)}"
        return text + "\n\n", {"pixel_values": clip.pixels}


def in_words(number: int) -> str:
    """English words of a number below a hundred."""
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    small += " seventeen eighteen nineteen"
    tens = "twenty thirty forty fifty sixty seventy eighty ninety"
    if number < 20:
        return small.split()[number]
    ten = tens.split()[number // 10 - 2]
    return f"{ten}-{small.split()[number % 10]}" if number % 10 else ten


class InternVL(Layout):
    placeholder = "<IMG_CONTEXT>"

    @property
    def per_picture(self) -> int:
        return self.config.image_seq_length

    def picture(self, number: int) -> str:
        between = "\n" if number else ""
        return f"{between}Frame{number + 1}: <img>{self.placeholder * self.per_picture}</img>"

    def image(self, image: Image.Image, alone: bool) -> Piece:
        pixels = self.processed(image)["pixel_values"]  # tiles, then the whole image
        return f"<img>{self.placeholder * self.per_picture * len(pixels)}</img>", {"pixel_values": pixels}


class AyaVision(Layout):
    placeholder = "<|IMG_PATCH|>"

    @property
    def per_picture(self) -> int:
        return super().per_picture // self.config.downsample_factor**2

    def picture(self, number: int, tiles: int = 0) -> str:
        run = self.placeholder * self.per_picture
        shown = "".join(f"TILE_{tile + 1}{run}" for tile in range(tiles))
        return f"<|START_OF_IMG|>{shown}TILE_GLOBAL{run}<|END_OF_IMG|>"

    def image(self, image: Image.Image, alone: bool) -> Piece:
        pixels = self.processed(image)["pixel_values"]
        return self.picture(0, len(pixels) - 1), {"pixel_values": pixels}


class Gemma3(Layout):
    placeholder = "<image_soft_token>"

    def picture(self, number: int) -> str:
        run = self.placeholder * self.config.mm_tokens_per_image
        return f"\n\n<start_of_image>{run}<end_of_image>\n\n"

    def image(self, image: Image.Image, alone: bool) -> Piece:
        return self.picture(0), {"pixel_values": self.processed(image)["pixel_values"]}

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": (ids == self.config.image_token_id).long()}


class PaliGemma(Layout):
    """Pictures first, then the prompt's beginning and end. Types are 0 on all that is not an answer."""

    add_special_tokens = False

    def whole(self, text: str) -> str:
        cut = max((match.end() for match in TAG.finditer(text)), default=0)
        return f"{text[:cut]}{self.tokenizer.bos_token}{text[cut:]}\n"

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": torch.zeros_like(ids)}


class LlavaNextVideo(Layout):
    """The frames of a video are one run of its own placeholder. All videos of a call have the same number of frames."""

    def frames(self, count: int) -> int:
        """Tokens of so many frames."""
        return count * (self.per_picture // self.config.spatial_pool_stride**2)

    def video(self, clip: VideoClip) -> Piece:
        return "<video>" * self.frames(len(clip.pixels)), {"pixel_values_videos": clip.pixels[None]}

    def image(self, image: Image.Image, alone: bool) -> Piece:
        """The base itself says how many tokens an image of this shape has."""
        made = self.processed(image)
        tensors = {name: made[name] for name in ("pixel_values", "image_sizes")}
        with torch.no_grad():
            features = self.model.get_image_features(**tensors, **self.whether(alone)).pooler_output
        return "<image>" * len(features[0]), tensors

    def whether(self, alone: bool) -> dict[str, torch.Tensor]:
        """How the base is told that."""
        return {}

    def tensors(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Images have different numbers of crops; forward takes as many as the most, and skips the rest by itself."""
        media = [medium for row in rows for medium in row]
        most = max((medium["pixel_values"].shape[1] for medium in media if "pixel_values" in medium), default=0)
        for medium in media:
            if "pixel_values" in medium:
                missing = most - medium["pixel_values"].shape[1]
                medium["pixel_values"] = torch.nn.functional.pad(medium["pixel_values"], [0] * 7 + [missing])
        return joined(media)


class LlavaOnevision(LlavaNextVideo):
    """A video is its frames, pooled 2 x 2 (rounded up), and one newline. An image is cut into crops where it is the
    only one of its prompt."""

    def frames(self, count: int) -> int:
        vision = self.config.vision_config
        return count * (-(-(vision.image_size // vision.patch_size) // 2)) ** 2 + 1

    def whether(self, alone: bool) -> dict[str, torch.Tensor]:
        return {"batch_num_images": torch.tensor([1 if alone else 2])}

    def tensors(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        images = [sum("image_sizes" in medium for medium in row) for row in rows]
        made = super().tensors(rows)
        return made | {"batch_num_images": torch.tensor(images)} if any(images) else made


class VideoLlava(Layout):
    """A frame keeps its class token, an image does not."""

    def video(self, clip: VideoClip) -> Piece:
        count = len(clip.pixels) * (self.per_picture + 1)
        return "<video>" * count, {"pixel_values_videos": clip.pixels[None]}

    def image(self, image: Image.Image, alone: bool) -> Piece:
        name = "pixel_values_images" if self.takes("pixel_values_images") else "pixel_values"
        return "<image>" * self.per_picture, {name: self.processed(image)["pixel_values"]}
