"""A chat request, from the json that a client sent. What is not known is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import InputError
from ...common.storage.json_text import is_text, parse_object, shown
from ..config import ServeConfig
from ..errors import ApiError, bad_request
from .sampling import Sampling

SAMPLING = ("max_tokens", "temperature", "top_p", "seed", "n", "stop")
OWN = {"model", "messages", "stream", "stream_options", "max_completion_tokens", "gaze", *SAMPLING}
# What changes no answer, and what changes none as long as it has one of these values.
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
OF_A_VIDEO = {"url", "start", "end", "fps"}
OF_A_PICTURE = {"url", "detail"}


@dataclass(frozen=True)
class MediumAsked:
    """kind: "video" or "image". part: start, end and fps of a video, as far as they are given. where: for errors."""

    kind: str
    url: str
    part: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class ChatRequest:
    """messages: role, and content as text or a list of texts and media. gaze: settings of videos that differ from the
    model's own; None: its dense base is asked. usage: whether a stream ends with what was spent."""

    messages: list[tuple[str, str | list[str | MediumAsked]]]
    sampling: Sampling
    stream: bool
    usage: bool
    gaze: Mapping[str, Any] | None = field(default_factory=dict)
    user: str = ""  # who is asked for, where one client speaks for many

    @property
    def media(self) -> list[MediumAsked]:
        """In the order of the messages."""
        return [
            part
            for _, content in self.messages
            if isinstance(content, list)
            for part in content
            if isinstance(part, MediumAsked)
        ]


def read_request(body: bytes, config: ServeConfig, name: str) -> ChatRequest:
    """name: the model's, as clients call it. Raises ApiError for whatever is wrong."""
    try:
        given = parse_object(body, "the request's body")
    except InputError as error:
        raise bad_request(str(error)) from error
    given = {key: value for key, value in given.items() if value is not None}
    _check_known(given)
    _check_model(given, name)
    stream = _typed(given, "stream", bool, False)
    options = _typed(given, "stream_options", dict, {})
    usage = options.get("include_usage", False)
    if not isinstance(usage, bool):
        raise bad_request("stream_options: include_usage must be true or false", "stream_options")
    user = _typed(given, "user", str, "")
    messages = _Messages(config).read(given.get("messages"))
    return ChatRequest(messages, _sampling(given, config), stream, usage, _gaze(given), user[:100])


def _check_known(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key in OWN or key in WITHOUT_EFFECT:
            continue
        if key not in NEUTRAL:
            raise bad_request(f"unknown field {shown(key)}", key[:100])
        if not any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[key]
        ):
            raise bad_request(f"{key} is not supported, got {shown(value)}", key)


def _check_model(given: Mapping[str, Any], name: str) -> None:
    model = _typed(given, "model", str, None)
    if model is None:
        raise bad_request(f"model is missing; this server has {name!r}", "model")
    if model != name:
        message = f"there is no model {shown(model)} here, only {name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _typed(given: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = given.get(key, default)
    if value is not default and not isinstance(value, kind):
        words = {bool: "true or false", dict: "an object", str: "text"}
        raise bad_request(f"{key} must be {words[kind]}, got {shown(value)}", key)
    return value


def _sampling(given: Mapping[str, Any], config: ServeConfig) -> Sampling:
    chosen = {name: given[name] for name in SAMPLING if name in given}
    other = given.get("max_completion_tokens")
    if other is not None:
        if chosen.get("max_tokens", other) != other:
            raise bad_request("max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
        chosen["max_tokens"] = other
    for name, value in chosen.items():  # one by one, to tell which is at fault
        try:
            Sampling(**{name: value})
        except InputError as error:
            raise bad_request(str(error), name) from error
    chosen.setdefault("max_tokens", config.max_tokens)
    for name, most in (("max_tokens", config.max_tokens), ("n", config.max_choices)):
        if chosen.get(name, 1) > most:
            raise bad_request(f"{name} must be at most {most} here, got {chosen[name]}", name)
    if not all(map(is_text, Sampling(**chosen).stop)):
        raise bad_request("stop is not UTF-8 text", "stop")
    return Sampling(**chosen)


def _gaze(given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    gaze = given.get("gaze", {})
    if gaze is False:
        return None
    if not isinstance(gaze, dict):
        raise bad_request(
            f"gaze must be an object of settings, or false for the dense model, got {shown(gaze)}", "gaze"
        )
    return gaze


class _Messages:
    """Reads the messages of a request, and counts what they hold."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._characters = self._media = 0

    def read(self, given: Any) -> list[tuple[str, str | list[str | MediumAsked]]]:
        if not isinstance(given, list) or not given:
            raise bad_request("messages must be a list of {role, content}", "messages")
        return [self._message(message, f"message {number}") for number, message in enumerate(given)]

    def _message(self, given: Any, where: str) -> tuple[str, str | list[str | MediumAsked]]:
        role = given.get("role") if isinstance(given, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise bad_request(f"{where}: role must be one of {', '.join(ROLES)}, got {shown(role)}", "messages")
        unknown = sorted(key for key, value in given.items() if value and key not in ("role", "content", "name"))
        if unknown:
            raise bad_request(f"{where}: {shown(unknown[0])} is not supported", "messages")
        content = given.get("content")
        if isinstance(content, str):
            return ROLES[role], self._text(content, where)
        if not isinstance(content, list) or not content:
            raise bad_request(f"{where}: content must be text or a list of parts, got {shown(content)}", "messages")
        return ROLES[role], [self._part(part, f"{where}, part {number}") for number, part in enumerate(content)]

    def _text(self, text: str, where: str) -> str:
        self._characters += len(text) + 1
        if self._characters > self._config.max_characters:
            raise bad_request(
                f"{where}: a conversation may have {self._config.max_characters} characters of text here", "messages"
            )
        if not is_text(text):
            raise bad_request(f"{where}: the text is not UTF-8", "messages")
        return text

    def _part(self, part: Any, where: str) -> str | MediumAsked:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str) or part.keys() - {"type", "text"}:
                raise bad_request(f'{where}: must be {{"type": "text", "text": ...}}', "messages")
            return self._text(part["text"], where)
        if kind not in ("video_url", "image_url"):
            raise bad_request(f"{where}: a part is of type text, image_url or video_url, got {shown(kind)}", "messages")
        medium = self._medium(part, kind, where)
        self._media += 1
        if self._media > self._config.max_media:
            raise bad_request(f"{where}: a conversation may have {self._config.max_media} videos and pictures here")
        return medium

    def _medium(self, part: Mapping[str, Any], kind: str, where: str) -> MediumAsked:
        medium = part.get(kind)
        known = OF_A_VIDEO if kind == "video_url" else OF_A_PICTURE
        if (
            not isinstance(medium, dict)
            or not isinstance(medium.get("url"), str)
            or part.keys() - {"type", kind, "uuid"}
        ):
            raise bad_request(f'{where}: must be {{"type": "{kind}", "{kind}": {{"url": ...}}}}', "messages")
        unknown = sorted(medium.keys() - known)
        if unknown:
            raise bad_request(
                f"{where}: unknown key {shown(unknown[0])}; known: {', '.join(sorted(known))}", "messages"
            )
        shown_part = {key: value for key, value in medium.items() if key not in ("url", "detail") and value is not None}
        return MediumAsked(kind.removesuffix("_url"), medium["url"], shown_part, where)
