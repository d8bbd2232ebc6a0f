"""Conversations in the messages format of transformers -> the model's own text, with a tag where each medium stands.

The text is what the model's chat template makes of the messages, media parts included, as transformers renders it. What
the template writes for a medium is found again and becomes a tag; text that looks like one stays text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.utils import get_json_schema

from ...common.errors import InputError, listed
from ...gaze.gazed_video import GazedVideo
from ...video.sources import as_video
from ..families import Family
from ..media import Media
from ..preprocessing import Preprocessing
from .chat_template import OtherFormError, render
from .prompt import LITERAL, placeholder_id

KINDS = ("video", "image")
# What may stand beside a video, by its name there and as of `Video`.
PART_OF_A_VIDEO = {"start": "start", "end": "end", "fps": "fps", "video_start": "start", "video_end": "end"}
# Where transformers finds a medium in its part of a message.
KEYS = {"video": ("video", "path", "url"), "image": ("image", "path", "url")}


@dataclass(frozen=True)
class MediaPart:
    """kind: "video" or "image". source: whatever `ask` takes as one."""

    kind: str
    source: Any


def messages_text(
    messages: Sequence[Mapping[str, Any]],
    preprocessing: Preprocessing,
    family: Family,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str, list[MediaPart]]:
    """-> the prompt with its tags, and its media in the order of the messages: the n-th video tag is the n-th video.

    Raises InputError for what is no conversation, and for one that the model's format has no place for.
    """
    shown, media = _read(messages)
    if preprocessing.chat_template is None:
        return _by_family(shown, family, tools), media
    literal = _Literals(family)
    shown = literal.protected(shown)
    options = dict(template_kwargs or {})
    if tools is not None:
        options["tools"] = literal.protected([get_json_schema(tool) if callable(tool) else tool for tool in tools])
    refused = ""
    for form in (shown, [_flat(message, family) for message in shown]):
        try:
            rendered = render(preprocessing.tokenizer, preprocessing.chat_template, form, **options)
        except OtherFormError as error:
            refused = refused or str(error)
        else:
            tagged = _tagged(rendered, media, family)
            if tagged is not None and all(text in rendered for text in _texts(shown)):
                return tagged, media
    why = f": {refused}" if refused else ""
    raise InputError(f"the model's chat template does not show this conversation{why}")


# -- what is given -----------------------------------------------------------------------------------------------


def _read(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """-> the messages as a template sees them, their media told apart by type alone; the media."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InputError('messages must be a list of {"role": ..., "content": ...}')
    shown, media = [], []
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f'{where}: must be {{"role": ..., "content": ...}}')
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            parts = [_part(part, f"{where}, part {index}") for index, part in enumerate(content)]
            media += [part for part in parts if isinstance(part, MediaPart)]
            content = [{"type": part.kind} if isinstance(part, MediaPart) else part for part in parts]
        elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise InputError(f"{where}: content must be text or a list of parts, got {type(content).__name__}")
        shown.append({**message, "content": content})
    if shown[-1]["role"] == "assistant":
        raise InputError("the last message is an answer: there is nothing to be answered")
    return shown, media


def _part(part: Any, where: str) -> dict[str, Any] | MediaPart:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return dict(part)
    if kind not in KINDS:
        raise InputError(
            f'{where}: must be {{"type": "text", "text": ...}}, {{"type": "video", "video": ...}} or '
            f'{{"type": "image", "image": ...}}, got {_short(part)}'
        )
    found = [key for key in KEYS[kind] if part.get(key) is not None]
    if len(found) != 1:
        raise InputError(f'{where}: needs its {kind} as "{kind}", got {_short(part)}')
    more = {key: value for key, value in part.items() if key not in ("type", *KEYS[kind])}
    unknown = sorted(str(key) for key in more if kind == "image" or key not in PART_OF_A_VIDEO)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}")
    source = part[found[0]]
    if kind == "image":
        return MediaPart(kind, source)
    try:
        return MediaPart(kind, _video(source, {PART_OF_A_VIDEO[key]: value for key, value in more.items()}))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _video(source: Any, part: Mapping[str, Any]) -> Any:
    """part: start, end and fps of `Video`, as far as they are given."""
    if isinstance(source, (GazedVideo, Media)):
        if part:
            raise InputError(f"{listed(sorted(part), 3)} cannot be chosen of a video that was gazed already")
        return source
    return replace(as_video(source), **part)


def _short(part: Any) -> str:
    return f"keys {sorted(map(str, part))}" if isinstance(part, Mapping) else type(part).__name__


def _texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What must be seen of a conversation: questions and answers, but for blanks around them."""
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        yield from (part["text"].strip() for part in parts if part["type"] == "text" and message["role"] == "user")


# -- what becomes of it ------------------------------------------------------------------------------------------


def _flat(message: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A message whose content is one text, for templates that know no parts."""
    content = message["content"]
    if not isinstance(content, list):
        return dict(message)
    parts = [part["text"] if part["type"] == "text" else f"<{part['type']}>{family.after_media}" for part in content]
    return {**message, "content": "".join(parts)}


def _by_family(messages: Sequence[dict[str, Any]], family: Family, tools: Sequence[Any] | None) -> str:
    """Questions and answers in turn, in the family's own format."""
    if tools:
        raise InputError("the model has no chat template, and its format no place for tools")
    pieces = []
    for number, message in enumerate(_Literals(family).protected(list(messages))):
        if message["role"] != ("assistant" if number % 2 else "user"):
            raise InputError(
                f"the model has no chat template: user and assistant take turns, but message {number} is of "
                f"{message['role']}"
            )
        text = _flat(message, family)["content"] or ""
        pieces.append(family.answer(text) if number % 2 else family.chat(text, first=number == 0))
    return "".join(pieces)


def _tagged(rendered: str, media: Sequence[MediaPart], family: Family) -> str | None:
    """The template's text with a tag for each medium; None where it does not show them all."""
    wanted = {kind: sum(part.kind == kind for part in media) for kind in KINDS}
    choices = (_marks(kind, family) if wanted[kind] else [""] for kind in KINDS)
    for chosen in itertools.product(*choices):
        marks = dict(zip(KINDS, chosen, strict=True))
        if marks["video"] == marks["image"] and media:  # written alike: they come in the order of the messages
            parts = rendered.split(marks["video"])
            if len(parts) == len(media) + 1:
                tags = [f"<{part.kind}>" for part in media]
                return "".join(text + tag for text, tag in zip(parts, [*tags, ""], strict=True))
        elif all(not mark or rendered.count(mark) == wanted[kind] for kind, mark in marks.items()):
            return _replaced(rendered, {mark: f"<{kind}>" for kind, mark in marks.items() if mark})
    return None


def _replaced(text: str, tags: Mapping[str, str]) -> str:
    """The text with its marks replaced, in one go: a tag may be another kind's mark."""
    if not tags:
        return text
    return re.sub("|".join(map(re.escape, tags)), lambda match: tags[match[0]], text)


def _marks(kind: str, family: Family) -> list[str]:
    """What a template may write for a medium of this kind, the likeliest first."""
    name = family.tokenizer.convert_ids_to_tokens
    own, image = name(placeholder_id(kind, family)), name(placeholder_id("image", family))
    marks = [form.format(own) for form in ("<|vision_start|>{}<|vision_end|>", "{}")]
    if own == image:  # the base knows no videos, or no tokens for them
        marks.insert(0, f"<{kind}>")
    start = getattr(family.config, "boi_token_index", None)  # a picture's first token, where it stands for all
    return list(dict.fromkeys([*marks, f"<{kind}>", *([] if start is None else [name(start)])]))


class _Literals:
    """Text of the user that looks like a tag or a placeholder, kept apart from what the template writes."""

    def __init__(self, family: Family) -> None:
        self._marks = sorted({mark for kind in KINDS for mark in (f"<{kind}>", *_marks(kind, family))}, key=len)

    def protected(self, value: Any) -> Any:
        """The same with the first character of each replaced, in all strings of nested lists and mappings."""
        return _mapped(value, self._text)

    def _text(self, text: str) -> str:
        for mark in self._marks:
            if mark.startswith("<"):
                text = text.replace(mark, LITERAL + mark[1:])
        return text


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(part, change) for part in value]
    return value
