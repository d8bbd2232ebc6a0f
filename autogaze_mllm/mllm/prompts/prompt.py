"""Prompts with `<video>` and `<image>` tags: text to ids, each tag expanded to what its medium becomes.

The number of visual tokens is known before the prompt is built: gaze, count, then expand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ...common.errors import InputError, listed
from ...common.storage.json_text import is_text
from ..families import Family
from ..media import TAG, Layout, Media
from ..preprocessing import Preprocessing
from .chat_template import render_messages

LITERAL = "\ufdd0"  # stands for a "<" that begins no tag and no token; text never holds this character
ESCAPED = re.compile(r"\\<(?=(?:video|image)>)")


def checked_text(text: Any, what: str) -> str:
    """Raises InputError for what no tokenizer takes. what: how an error calls it."""
    if not isinstance(text, str):
        raise InputError(f"{what} must be text, got {type(text).__name__}")
    if not is_text(text):
        raise InputError(f"{what} is not UTF-8 text: it holds halves of characters")
    return text


def prompts_in(given: Any) -> list[str]:
    """One prompt, or several -> a list. Raises InputError for what is no text."""
    texts = [given] if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) else list(given)
    if not texts:
        raise InputError("no prompt was given")
    return [checked_text(text, f"prompt {number}") for number, text in enumerate(texts)]


def tags_in(text: str) -> list[str]:
    """The tags of a prompt in order, 'video' or 'image'."""
    return TAG.findall(text)


def check_counts(text: str, videos: int, images: int, row: int) -> None:
    """Raises InputError when a prompt's tags and its media do not match."""
    tags = tags_in(text)
    counts = {"video": videos, "image": images}
    more = next((kind for kind, given in counts.items() if tags.count(kind) > given), None)
    hint = "" if more is None else f"; a tag that is meant as text is written \\<{more}>"
    for kind, given in counts.items():
        if tags.count(kind) != given:
            raise InputError(f"prompt {row}: {tags.count(kind)} <{kind}> tags, but {given} {kind}s were given{hint}")


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
    """Rendered text -> ids in which every tag is expanded to what its medium becomes: text, runs of placeholders."""
    tokenizer = preprocessing.tokenizer
    waiting = iter(media)
    marked = TAG.sub(lambda match: media_text(next(waiting).layout, match[1], family), text)
    has_start = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids, _ = text_tokens(ESCAPED.sub(LITERAL, marked), tokenizer, family.add_special_tokens and not has_start)
    runs = [run for item in media for run in item.runs]
    counts = placeholder_counts(ids, runs, family, f"prompt {row}")
    return [token for token, count in zip(ids, counts, strict=True) for _ in range(count)]


def text_tokens(text: str, tokenizer: Any, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and the characters [start, end) of each where the tokenizer tells them. A "<" that is literal becomes no
    part of a special token. special: the tokenizer adds what begins a text."""
    *before, last = text.split(LITERAL)
    first, *rest = [*(piece + "<" for piece in before), last]
    options = {"return_offsets_mapping": bool(tokenizer.is_fast)}
    found = tokenizer(first, add_special_tokens=special, **options)
    ids, offsets = list(found["input_ids"]), list(found.get("offset_mapping") or ())
    begin = len(first)
    for piece in rest:
        # It is read as in the middle of a text: some tokenizers put a blank before the first word.
        skipped = len(tokenizer("\n", add_special_tokens=False)["input_ids"])
        found = tokenizer("\n" + piece, add_special_tokens=False, **options)
        ids += found["input_ids"][skipped:]
        offsets += [
            (start + begin - 1, end + begin - 1) for start, end in (found.get("offset_mapping") or ())[skipped:]
        ]
        begin += len(piece)
    return ids, offsets


def media_text(layout: Layout, kind: str, family: Family) -> str:
    """What a medium becomes in the prompt, with one placeholder for each of its runs. kind: "video" or "image"."""
    placeholder = family.tokenizer.convert_ids_to_tokens(placeholder_id(kind, family))
    return "".join(piece if isinstance(piece, str) else placeholder for piece in layout)


def placeholder_id(kind: str, family: Family) -> int:
    """kind: "video" or "image"."""
    return family.image_token_id if kind == "image" else family.video_token_id


def placeholder_counts(ids: Sequence[int], runs: Sequence[int], family: Family, what: str) -> list[int]:
    """How often each id is to be repeated: a placeholder as often as its run is long, all else once."""
    waiting = iter(runs)
    placeholders = (family.image_token_id, family.video_token_id)
    found = sum(token in placeholders for token in ids)
    if found != len(runs):
        name = listed([f"{family.tokenizer.convert_ids_to_tokens(token)}" for token in dict.fromkeys(placeholders)], 2)
        raise InputError(
            f"{what}: {found} placeholders where {len(runs)} belong: its text must not hold {name}, which the model "
            "reads as a picture"
        )
    return [next(waiting) if token in placeholders else 1 for token in ids]


def pad_rows(rows: list[list[int]], pad_id: int, side: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows of ids -> input_ids and attention_mask (B, L), padded on `side`."""
    if side not in ("left", "right"):
        raise InputError(f"padding_side must be 'left' or 'right', got {side!r}")
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, device=device)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        columns = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[number, columns] = torch.tensor(row, device=device)
        mask[number, columns] = 1
    return {"input_ids": ids, "attention_mask": mask}


def media_per_prompt(
    given: Any, listed: Callable[[Any], list[Any]], single: bool, prompts: int, name: str
) -> list[list[Any]]:
    """Media lists, one per prompt. listed: makes a list of what may be one medium or several."""
    if given is None:
        return [[] for _ in range(prompts)]
    if single:
        return [listed(given)]
    if not isinstance(given, (list, tuple)):
        raise InputError(f"{name} must be a list for each of {prompts} prompts, got {type(given).__name__}")
    if len(given) != prompts or not all(isinstance(part, (list, tuple)) for part in given):
        raise InputError(f"{prompts} prompts need {name} as {prompts} lists, one per prompt")
    return [listed(part) for part in given]
