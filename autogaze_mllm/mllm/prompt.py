"""Prompts with `<video>` and `<image>` tags: text to ids, each tag expanded to as many placeholders as it has tokens.

The number of visual tokens is known before the prompt is built: gaze, count, then expand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from ..common.errors import InputError
from .chat_template import render_messages
from .families import Family
from .media import Media
from .preprocessing import Preprocessing

ImageSource = str | Path | Image.Image

TAG = re.compile(r"<(video|image)>")


def tags_in(text: str) -> list[str]:
    """The tags of a prompt in order, 'video' or 'image'."""
    return TAG.findall(text)


def check_counts(text: str, videos: int, images: int, row: int) -> None:
    """Raises InputError when a prompt's tags and its media do not match."""
    tags = tags_in(text)
    for kind, given in (("video", videos), ("image", images)):
        if tags.count(kind) != given:
            raise InputError(f"prompt {row}: {tags.count(kind)} <{kind}> tags, but {given} {kind}s were given")


def render_chat(text: str, preprocessing: Preprocessing, family: Family) -> str:
    """The question in the model's chat format, its tags left where they stand.

    The tags stay inside the text part: chat templates move media parts to the front, which would lose their places.
    """
    template, text = preprocessing.chat_template, text.strip()
    if template is None:
        return family.chat(text)
    for content in ([{"type": "text", "text": text}], text):
        messages = [{"role": "user", "content": content}]
        rendered = render_messages(preprocessing.tokenizer, template, messages)
        if rendered is not None and text in rendered:
            return rendered
    raise InputError("the model's chat template does not show the question; give the whole prompt with chat=False")


def encode_prompt(
    text: str, media: Sequence[Media], preprocessing: Preprocessing, family: Family, row: int
) -> list[int]:
    """Rendered text -> ids in which every tag is expanded to `tokens` placeholders of its medium."""
    tokenizer = preprocessing.tokenizer
    ids_of = {"image": family.image_token_id, "video": family.video_token_id}
    marked = TAG.sub(lambda match: tokenizer.convert_ids_to_tokens(ids_of[match[1]]), text)
    has_start = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = tokenizer(marked, add_special_tokens=not has_start)["input_ids"]
    counts = placeholder_counts(ids, [item.tokens for item in media], family, f"prompt {row}")
    return [token for token, count in zip(ids, counts, strict=True) for _ in range(count)]


def placeholder_counts(ids: Sequence[int], tokens: Sequence[int], family: Family, what: str) -> list[int]:
    """How often each id is to be repeated: a placeholder as often as its medium has visual tokens, all else once."""
    waiting = iter(tokens)
    placeholders = (family.image_token_id, family.video_token_id)
    found = sum(token in placeholders for token in ids)
    if found != len(tokens):
        raise InputError(f"{what}: the tokenizer gives {found} placeholders for {len(tokens)} tags")
    return [next(waiting) if token in placeholders else 1 for token in ids]


def pad_rows(rows: list[list[int]], pad_id: int, side: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows of ids -> input_ids and attention_mask (B, L), padded on `side`."""
    if side not in ("left", "right"):
        raise InputError(f"padding_side must be 'left' or 'right', got {side!r}")
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, device=device)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[number, place] = torch.tensor(row, device=device)
        mask[number, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def media_per_prompt(given: Sequence[Any] | None, single: bool, prompts: int, name: str) -> list[list[Any]]:
    """Media lists, one per prompt."""
    if given is None:
        return [[] for _ in range(prompts)]
    if isinstance(given, (str, Path)):
        raise InputError(f"{name} must be a list, got {given!r}")
    if single:
        return [list(given)]
    if len(given) != prompts or not all(isinstance(part, (list, tuple)) for part in given):
        raise InputError(f"{prompts} prompts need {name} as {prompts} lists, one per prompt")
    return [list(part) for part in given]


def open_image(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    try:
        return Image.open(source).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{source}: not a readable image ({error})") from error
