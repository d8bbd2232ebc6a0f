"""From a video to its visual tokens: gazing, the cache, the gazed tower and the projector, and what all that cost.

A `VideoEncoder` is made for one call, of what the model is at that moment, and counts into the stats of that call.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..common.errors import InputError
from ..common.timing import Stopwatch
from ..gaze.cache import VideoCache
from ..gaze.gazed_video import GazedVideo
from ..gaze.pipeline import gaze_video
from ..gaze.selectors.base import AnySelector, as_selector
from ..gaze.selectors.post_tower import tokens_to_keep
from ..gaze.settings import VideoSettings
from ..video import PYAV
from ..video.sources import VideoLike, as_video
from ..vision.tower import GazedVisionModel
from .call_state import Stats, add_stats, new_stats
from .families import Family
from .media import Media

_one_at_a_time = threading.Lock()  # for selectors that are not made for threads

VideoSource = VideoLike | GazedVideo | Media
CacheFacts = tuple[dict[str, Any] | None, dict[str, Any] | None]


@dataclass(frozen=True)
class VideoEncoder:
    """gazing: False for the dense base, which sees whole frames. stats: of the call, counted up here."""

    family: Family
    tower: GazedVisionModel
    selector: AnySelector
    settings: VideoSettings
    cache: VideoCache | None
    gazing: bool
    stats: Stats = field(default_factory=new_stats)

    # -- gazing --------------------------------------------------------------------------------------------------

    def gaze(self, source: VideoLike, progress: bool = False) -> GazedVideo:
        """From the cache if it is there; then stats["from_cache"] of the result is 1."""
        start = time.perf_counter()
        self.family.check_settings(self.settings)
        key = self.gazed_key(source)
        if self.cache is not None and key is not None:
            found = self.cache.get_gazed(key)
            if found is not None:
                found.stats |= {"seconds": {"cache": time.perf_counter() - start}, "from_cache": 1}
                return found
        with nullcontext() if as_selector(self.selector).thread_safe else _one_at_a_time:
            gazed = gaze_video(source, self.selector, self.settings, **self.form, progress=progress)
        if self.cache is not None and key is not None:
            self.cache.put_gazed(key, gazed)
        return gazed

    @property
    def form(self) -> dict[str, Any]:
        """Options of `gaze_video`: the form in which the tower takes patches."""
        return {
            "grid": self.tower.grid,
            "grid_for": None if self.tower.fixed else self.tower.grid_for,
            "tubelet": self.tower.tubelet,
            "thumbnail_cells": self.tower.thumbnail_cells,
            "pixels": self.family.pixels,
            "device": self.tower.device,
            "dtype": self.family.base.dtype,
        }

    def gazed_key(self, source: VideoLike) -> str | None:
        """What a video's kept patches are called in the cache; None where they cannot be cached."""
        if self.cache is None:
            return None
        facts = self._gaze_facts()
        return None if facts is None else self.cache.key(source, **facts)

    def _gaze_facts(self) -> dict[str, Any] | None:
        """All that decides the kept patches of a video, or None when they cannot be cached."""
        selector = as_selector(self.selector).identity()
        pixels = self.family.pixels
        return selector and {
            "selector": selector,
            "settings": self.settings.to_dict(),
            "grid": [self.tower.grid.scales, self.tower.grid.patch],
            **self.tower.facts(),
            "pixels": [pixels.mean, pixels.std],
            "dtype": str(self.family.base.dtype),
            **({} if self.settings.decoder == PYAV else {"decoded_on": self.tower.device.type}),
        }

    # -- media of a prompt ---------------------------------------------------------------------------------------

    def media(self, source: VideoSource, reuse: bool, progress: bool) -> Media:
        """A video as it stands in a prompt. reuse: take its visual tokens from the cache, and keep them there."""
        if isinstance(source, Media):
            return source
        if not self.gazing:
            return self._dense(source)
        key = state = None
        if reuse and self.cache is not None and not isinstance(source, GazedVideo) and not self.family.base.training:
            start = time.perf_counter()
            state = self.family.vision_state()
            key = None if state is None else self._token_key(source, state)
            found = None if key is None else self.cache.get_tokens(key)
            if found is not None:
                tokens, numbers, token_map = found
                self.count({**numbers, "from_cache": 1, "seconds": {"cache": time.perf_counter() - start}})
                return Media(self.family.layout(token_map), tokens, token_map)
        gazed = source if isinstance(source, GazedVideo) else self.gaze(source, progress)
        self.tower.check_video(gazed)
        made = {} if gazed is source else gazed.stats  # what was gazed before costs this call nothing
        self.count(
            {**self._numbers(gazed), "from_cache": made.get("from_cache", 0), "seconds": made.get("seconds", {})}
        )
        if gazed.keep_after is not None:
            return self._pruned(gazed, key, state)
        return self.gazed_media(gazed, key, state)

    @torch.no_grad()
    def _pruned(self, gazed: GazedVideo, key: str | None, state: str | None) -> Media:
        """A video whose tokens are dropped after the tower: how many are left of each picture is known only then."""
        share, whole = gazed.keep_after, dataclasses.replace(gazed, keep_after=None)
        assert share is not None
        item = self.gazed_media(whole)
        clock = Stopwatch(self.family.device)
        (tokens,) = self.features([item], clock)
        assert item.token_map is not None
        kept = tokens_to_keep(tokens, item.token_map, share)
        token_map = item.token_map.kept(kept)
        if self.cache is not None and key is not None and self.family.vision_state() == state:
            self.cache.put_tokens(key, tokens[kept], self._numbers(gazed), token_map)
        self.count({"seconds": clock.seconds})
        return Media(self.family.layout(token_map), tokens[kept], token_map)

    def gazed_media(self, gazed: GazedVideo, key: str | None = None, state: str | None = None) -> Media:
        """key, state: where its visual tokens are to be kept, and for which weights."""
        if gazed.keep_after is not None:
            raise InputError(
                "tokens of this video are dropped after the tower: only ask() and encode_video() can do that"
            )
        token_map = self.family.token_map(gazed)
        return Media(self.family.layout(token_map), gazed, token_map, key, state)

    def _dense(self, source: VideoLike | GazedVideo) -> Media:
        """All frames that the settings take, as the base model sees them."""
        if isinstance(source, GazedVideo):
            raise InputError("inside disabled() a video must be there as such: a gazed video has no dense frames left")
        clock = Stopwatch(torch.device("cpu"))
        with clock.stage("decode"):
            reader, wanted = as_video(source).sampled(
                self.settings.frames, self.settings.fps, self.settings.decoder, self.tower.device
            )
            shown = (torch.as_tensor(chunk.frames).cpu().numpy() for chunk in reader.read(wanted))
            pixels = torch.cat([self.family.frame_pixels(frames) for frames in shown])
        item = self.family.dense_video(pixels, [float(reader.seconds[index]) for index in wanted])
        numbers = {"frames": len(pixels), "frames_lost": len(reader.lost), "dense_tokens": item.tokens}
        self.count({**numbers, "seconds": clock.seconds})
        return item

    def _token_key(self, source: VideoLike, state: str) -> str | None:
        """Cache key of the visual tokens of a video; also the weights of tower and projector decide them."""
        facts = self._gaze_facts()
        if self.cache is None or facts is None:
            return None
        return self.cache.key(source, **facts, **self._token_facts(state))

    def cache_facts(self) -> CacheFacts:
        """What decides the kept patches of a video, and what besides decides its visual tokens; None where they cannot
        be cached."""
        state = self.family.vision_state()
        return self._gaze_facts(), None if state is None else self._token_facts(state)

    def _token_facts(self, state: str) -> dict[str, Any]:
        return {
            "family": self.family.model_type,
            "layers": self.family.feature_layers,
            "attention": [self.tower.attn_type, self.tower.frame_independent],
            "weights": state,
        }

    # -- visual tokens -------------------------------------------------------------------------------------------

    def features(self, items: Sequence[Media], clock: Stopwatch) -> list[torch.Tensor]:
        """Visual tokens (n, D) of each; the tower runs once for all that are gazed."""
        gazed = [item.content for item in items if isinstance(item.content, GazedVideo)]
        if gazed and not self.gazing:
            raise InputError("these inputs were gazed; inside disabled() prepare them anew")
        seen: list[torch.Tensor] = []
        if gazed:
            with clock.stage("tower"):
                seen = self.family.gazed_features(self.tower, gazed)
        rest = iter(seen)
        return [self._tokens(item, rest, clock) for item in items]

    def _tokens(self, item: Media, seen: Iterator[torch.Tensor], clock: Stopwatch) -> torch.Tensor:
        """seen: gives what the tower made of the next item that is gazed."""
        if isinstance(item.content, torch.Tensor):
            return item.content.to(self.family.device)
        if not isinstance(item.content, GazedVideo):
            with clock.stage("dense vision"):
                return self.family.dense_features(item.content)
        with clock.stage("projector"):
            tokens = self.family.project(next(seen), item.content.picture_counts())
        if self.cache is not None and item.cache_key is not None and not torch.is_grad_enabled():
            key, item.cache_key = item.cache_key, None
            # Weights may have changed since the inputs were prepared.
            if self.family.vision_state() == item.cache_state and item.token_map is not None:
                self.cache.put_tokens(key, tokens, self._numbers(item.content), item.token_map)
        return tokens

    # -- stats ---------------------------------------------------------------------------------------------------

    def _numbers(self, gazed: GazedVideo) -> dict[str, int]:
        """What the stats say of a gazed video."""
        frames = gazed.stats.get("frames", (gazed.num_pictures - gazed.thumbnails) * gazed.tubelet)
        return {
            "frames": frames,
            "frames_lost": gazed.stats.get("frames_lost", 0),
            "patches": len(gazed),
            "patches_total": gazed.total_patches,
            "dense_tokens": self.family.dense_count(frames, tuple(gazed.stats.get("size", gazed.grid.scales[-1]))),
        }

    def count(self, numbers: Stats) -> None:
        """Adds to the stats of the call under way."""
        add_stats(self.stats, numbers)
