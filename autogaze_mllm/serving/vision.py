"""From a request to a prompt that an engine can read: videos are gazed and encoded, and those seen before are not."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..common.compute.cancelling import Cancellation, cancellable
from ..common.errors import InputError
from ..gaze.settings import VideoSettings
from ..mllm.calls.inputs import ModelInputs
from ..mllm.media import Media
from ..mllm.model import GazedModel
from ..video.sources import Video
from .config import ServeConfig
from .engines.base import Engine
from .errors import bad_request
from .intake.media import MediaPolicy, plain_errors, without_paths
from .intake.request import ChatRequest

COUNTED = ("patches", "patches_total", "dense_tokens")


@dataclass(frozen=True)
class Seen:
    """A video as it stands in a prompt, and what it cost to see it."""

    media: Media
    stats: Mapping[str, Any]


class SeenVideos:
    """The videos that were asked about last, by content and settings. Threads may share it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Seen | None:
        with self._lock:
            if key in self._seen:
                self._seen.move_to_end(key)
            return self._seen.get(key)

    def put(self, key: str, seen: Seen) -> None:
        with self._lock:
            self._seen[key] = seen
            while len(self._seen) > self._most:
                self._seen.popitem(last=False)


@dataclass(frozen=True)
class Prompt:
    """ready: what the engine made of it. tokens: of the prompt. gaze_facts: what the answer says about its videos."""

    ready: Any
    tokens: int
    gaze_facts: dict[str, Any]


@dataclass(frozen=True)
class Sighting:
    """A request whose media were fetched and may be looked at. sources: in their order. keys: of its videos, None for
    pictures."""

    request: ChatRequest
    settings: VideoSettings
    sources: list[Video | Image.Image]
    keys: list[str | None]


class Vision:
    """The half of the work that needs no LLM."""

    def __init__(self, model: GazedModel, engine: Engine, config: ServeConfig) -> None:
        self._model, self._engine, self._config = model, engine, config
        self._policy = MediaPolicy(config)
        self._seen = SeenVideos(config.keep_videos)

    def fetch(self, request: ChatRequest, call: Cancellation) -> Sighting:
        """Settings checked, media fetched, videos opened. Raises ApiError."""
        settings = self._settings(request)
        with cancellable(call):
            sources = [self._policy.obtained(asked, call) for asked in request.media]
            keys = [
                self._key(source, settings, asked.where) for asked, source in zip(request.media, sources, strict=True)
            ]
            for asked, source, key in zip(request.media, sources, keys, strict=True):
                if isinstance(source, Video) and (key is None or self._seen.get(key) is None):
                    self._policy.check_video(source, settings.frames, settings.fps, asked.where)
        return Sighting(request, settings, sources, keys)

    def knows(self, sighting: Sighting) -> bool:
        """Whether nothing of it has to be gazed or encoded."""
        gazed = sighting.request.gaze is not None
        return gazed and all(key is not None and self._seen.get(key) for key in sighting.keys)

    def prepare(self, sighting: Sighting, call: Cancellation) -> Prompt:
        """Raises ApiError, and CancelledCall when the call is cancelled."""
        request = sighting.request
        gazed = request.gaze is not None
        off = nullcontext() if gazed else self._model.disabled()
        with cancellable(call), torch.no_grad(), off:
            seen = [self._look(sighting, number) for number in range(len(sighting.sources))] if gazed else []
            sources = [one.media if isinstance(one, Seen) else one for one in seen] or sighting.sources
            try:
                inputs = self._model.prepare_chat(_messages(request, sources), reuse=gazed)
            except InputError as error:
                raise bad_request(without_paths(str(error), map(_file_of, sighting.sources)), "messages") from error
            tokens = int(inputs["input_ids"].shape[1])
            self._check_length(tokens, request)
            return Prompt(self._engine.ready(inputs), tokens, self._gaze_facts(seen, inputs))

    def _settings(self, request: ChatRequest) -> VideoSettings:
        own = self._model.settings
        try:
            settings = own.changed(**(request.gaze or {}))
        except (InputError, TypeError) as error:
            raise bad_request(f"gaze: {error}", "gaze") from error
        if settings.decoder != own.decoder:
            raise bad_request(f"gaze: decoder is {own.decoder} here, and not for clients to choose", "gaze")
        for name, most in (
            ("frames", self._config.max_frames),
            ("chunk_frames", self._config.max_frames),
            ("thumbnails", self._config.max_frames),
            ("max_tiles", self._config.max_tiles_asked),
        ):
            if getattr(settings, name) > max(most, getattr(own, name)):
                raise bad_request(f"gaze: {name} must be at most {most} here, got {getattr(settings, name)}", "gaze")
        return settings

    def _key(self, source: Video | Image.Image, settings: VideoSettings, where: str) -> str | None:
        if not isinstance(source, Video):
            return None
        with plain_errors(source.source, where):
            return json.dumps([source.content(), settings.to_dict()], sort_keys=True)

    def _look(self, sighting: Sighting, number: int) -> Seen | Image.Image:
        source, key = sighting.sources[number], sighting.keys[number]
        if not isinstance(source, Video):
            return source
        assert key is not None
        found = self._seen.get(key)
        if found is not None:
            return Seen(found.media, {**found.stats, "from_cache": 1, "seconds": {}})
        with plain_errors(source.source, sighting.request.media[number].where):
            media = self._model.encode_video(
                source, share_prompt=self._engine.shares_prefix, settings=sighting.settings
            )
        seen = Seen(media, dict(self._model.stats))
        self._seen.put(key, seen)
        return seen

    def _check_length(self, tokens: int, request: ChatRequest) -> None:
        limits = [known for known in (self._model.family.context_length, self._engine.context_length) if known]
        limit, asked = min(limits, default=None), request.sampling.max_tokens or 0
        if limit and tokens + asked > limit:
            error = f"the prompt has {tokens} tokens; with the {asked} of the answer that is more than the {limit}"
            raise bad_request(f"{error} that the LLM takes", "messages", "context_length_exceeded")

    def _gaze_facts(self, seen: list[Seen | Image.Image], inputs: ModelInputs) -> dict[str, Any]:
        videos = [one.stats for one in seen if isinstance(one, Seen)]
        seconds: dict[str, float] = {}
        for stats in videos:
            for stage, spent in stats.get("seconds", {}).items():
                seconds[stage] = round(seconds.get(stage, 0.0) + spent, 4)
        return {
            **{name: sum(stats.get(name, 0) for stats in videos) for name in COUNTED},
            "visual_tokens": inputs.stats["visual_tokens"],
            "seen_before": bool(videos) and all(stats.get("from_cache") for stats in videos),
            "seconds": seconds,
        }


def _file_of(source: Any) -> Any:
    return source.source if isinstance(source, Video) else None


def _messages(request: ChatRequest, sources: list[Any]) -> list[dict[str, Any]]:
    """The conversation as `chat` takes it."""
    waiting = iter(zip(request.media, sources, strict=True))

    def part(content: Any) -> dict[str, Any]:
        if isinstance(content, str):
            return {"type": "text", "text": content}
        asked, source = next(waiting)
        return {"type": asked.kind, asked.kind: source}

    return [
        {"role": role, "content": content if isinstance(content, str) else [part(one) for one in content]}
        for role, content in request.messages
    ]
