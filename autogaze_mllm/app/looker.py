"""Looks at videos and asks about them for a page: one at a time, and what was seen last is kept.

Nothing of the page is in here: `look` gives the kept patches, the videos to show and the numbers, `ask` the answer with
gaze and `ask_dense` that of the base model.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.fields import settings_of
from ..gaze.autogaze.pretrained import BUNDLED
from ..gaze.gazed_video import GazedVideo
from ..gaze.pictures.overlay import pace
from ..gaze.pipeline import gaze_video
from ..gaze.selector_registry import NAMED, load_selector
from ..gaze.selectors.base import AnySelector, as_selector, selector_name, stop_rule
from ..gaze.settings import VideoSettings
from ..mllm.calls.answers import TextStream
from ..mllm.media import Media
from ..mllm.model import GazedModel
from ..video.sources import Video
from .chart import FrameCounts, frame_counts
from .config import AppConfig
from .panel_videos import PanelVideos

KEPT = 4  # videos that are kept for further questions
SLOWEST, FASTEST = 2.0, 15.0  # frames a second of the videos that are shown
SLIDERS = {one.name: one for one in settings_of(VideoSettings) if one.slider is not None}
Report = Callable[[int, int], None]
"""Called with how many frames were gazed, and of how many."""


@dataclass
class Seen:
    """A video that was looked at. clips: a video file each of the frames, the kept patches and the rebuilt pictures,
    of `fps` frames a second. facts: numbers and settings, json values. media: its visual tokens, once somebody asked.
    """

    key: str
    gazed: GazedVideo
    settings: VideoSettings
    clips: dict[str, Path]
    fps: float
    counts: FrameCounts
    facts: dict[str, Any]
    media: Media | None = None


@dataclass
class Reply:
    """An answer that is being written. stats: complete at its end; refusal: why there is none."""

    text: str = ""
    seconds: float = 0.0
    stats: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""


class Looker:
    """folder: for files of its own, removed by whoever made it. gaze: what the model's selector is called, where not by
    its own name. options: of the command line that make this model of `ask`."""

    def __init__(
        self,
        model: GazedModel,
        folder: Path,
        config: AppConfig,
        gaze: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.model, self.folder, self.config, self.options = model, folder, config, list(options)
        self.own = gaze or selector_name(model.gaze)
        self.busy = threading.Lock()  # one video is looked at at a time; answers are written beside that
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._selectors: dict[str, AnySelector] = {self.own: model.gaze}

    # -- what can be chosen --------------------------------------------------------------------------------------

    @property
    def selectors(self) -> list[str]:
        """Their names, the model's own first. One that keeps all patches and drops tokens later shows nothing here."""
        others = [name for name, kind in NAMED.items() if not kind.after_tower]
        return list(dict.fromkeys((self.own, *others, BUNDLED)))

    def selector(self, name: str) -> AnySelector:
        if name not in self.selectors:
            raise InputError(f"selector {name!r} is not one of {', '.join(self.selectors)}")
        if name not in self._selectors:
            self._selectors[name] = load_selector(name, device=self.model.device)
        return self._selectors[name]

    def range_of(self, name: str) -> tuple[float, float, float]:
        """Least, most and step of a setting's slider. What the model itself takes can always be had."""
        slider = SLIDERS[name].slider
        assert slider is not None
        most = {"frames": self.config.most_frames, "max_tiles": self.config.most_tiles}.get(name, slider[1])
        return slider[0], max(most, self.usual(name, self.selectors[0])), slider[2]

    def usual(self, name: str, selector: str) -> float:
        """Where a slider stands that nobody has moved."""
        base = self._base(selector)
        value = getattr(base, name)
        if name == "loss":
            return stop_rule(value, self.selector(selector), base) or 0.0
        if isinstance(value, tuple):
            return round(sum(value) / len(value), 3)
        return value

    def _base(self, selector: str) -> VideoSettings:
        """The model's own settings; its loss is in the unit of its own selector."""
        return self.model.settings if selector == self.own else self.model.settings.changed(loss=None)

    def settings(self, selector: str, values: Mapping[str, float]) -> VideoSettings:
        """The model's own settings, but for the sliders that were moved."""
        changes: dict[str, Any] = {}
        for name, value in values.items():
            one, (least, most, _) = SLIDERS[name], self.range_of(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise InputError(one.refused(value, f"lie in [{least:g}, {most:g}] here"))
            if not math.isclose(value, self.usual(name, selector), abs_tol=1e-6):
                changes[name] = int(value) if one.kind is int else value
        if "frames" in changes:
            changes["fps"] = None
        return self._base(selector).changed(**changes)

    # -- looking -------------------------------------------------------------------------------------------------

    def look(self, path: str, selector: str, values: Mapping[str, float], report: Report) -> Seen:
        """Raises InputError for what cannot be looked at."""
        with self.busy:
            settings, chosen, video = self.settings(selector, values), self.selector(selector), Video(path)
            as_selector(chosen).check_grid(self.model.tower.grid)
            self.model.family.check_settings(settings)
            key = _digest(video.content(), selector, settings.to_dict())
            if key in self._seen:
                self._seen.move_to_end(key)
                return self._seen[key]
            seen = self._look(key, video, selector, settings, report)
            seen.facts = self._facts(seen, Path(path).name, selector) | seen.facts
            self._seen[key] = seen
            while len(self._seen) > KEPT:
                _, oldest = self._seen.popitem(last=False)
                shutil.rmtree(next(iter(oldest.clips.values())).parent, ignore_errors=True)
            return seen

    def _look(self, key: str, video: Video, selector: str, settings: VideoSettings, report: Report) -> Seen:
        reader, numbers = video.sampled(settings.frames, settings.fps)
        if len(numbers) > (most := int(self.range_of("frames")[1])):
            raise InputError(f"{reader.name}: {len(numbers)} frames would be looked at, here at most {most}: lower fps")
        report(0, len(numbers))
        fps = min(max(pace(reader.seconds[numbers]), SLOWEST), FASTEST)
        folder, chosen = self.folder / key, self.selector(selector)
        folder.mkdir(exist_ok=True)
        try:
            with PanelVideos(folder, fps, self.model.tower.tubelet) as clips:
                gazed = gaze_video(video, chosen, settings, **self.model.video_form, listener=clips, advance=report)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.model.cache is not None and (kept_as := self.model.gazed_key(video, settings, chosen)) is not None:
            self.model.cache.put_gazed(kept_as, gazed)  # `ask` on the command line finds it, too
        drawn = {
            "psnr_db": clips.psnr if math.isfinite(clips.psnr) else None,
            "seconds_wall": gazed.stats["seconds_wall"] - clips.seconds,
            "seconds_drawing": clips.seconds,
        }
        return Seen(key, gazed, settings, clips.paths, fps, frame_counts(gazed), drawn)

    def _facts(self, seen: Seen, name: str, selector: str) -> dict[str, Any]:
        gazed, stats = seen.gazed, seen.gazed.stats
        if gazed.keep_after is not None:  # how many tokens are left is known behind the tower only
            self._encode(seen)
        tokens = seen.media.tokens if seen.media is not None else self.model.gazed_media(gazed).tokens
        return {
            "video": name,
            **{fact: stats[fact] for fact in ("size", "frames", "frames_lost", "tiles", "seconds")},
            "patches": len(gazed),
            "patches_total": gazed.total_patches,
            "reduction": gazed.total_patches / max(len(gazed), 1),
            "visual_tokens": tokens,
            "dense_tokens": self.model.family.dense_count(stats["frames"], tuple(stats["size"])),
            "selector": selector,
            "settings": {name: value for name, value in seen.settings.to_dict().items() if value is not None},
            "command": self._command(name, selector, seen.settings),
            "kept": {
                "scales": list(seen.counts.names),
                "seconds": list(seen.counts.seconds),
                "patches": [list(frame) for frame in seen.counts.kept],
            },
        }

    def _command(self, name: str, selector: str, settings: VideoSettings) -> str:
        """The command line that asks about the same patches."""
        words = ["autogaze-mllm", "ask", name, "QUESTION", *self.options]
        words += [] if selector == self.own else ["--gaze", selector]
        for one in SLIDERS.values():
            value, own = getattr(settings, one.name), getattr(self.model.settings, one.name)
            if value != own:
                words += [one.option, f"{self.usual(one.name, selector) if value is None else value:g}"]
        return shlex.join(words)

    # -- asking --------------------------------------------------------------------------------------------------

    def _encode(self, seen: Seen) -> dict[str, Any]:
        """Its visual tokens, once. -> what that cost now."""
        if seen.media is not None:
            return {}
        seen.media = self.model.encode_video(seen.gazed, share_prompt=self.model.family.share_prefix)
        return dict(self.model.stats["seconds"])

    def ask(self, seen: Seen, question: str) -> Iterator[Reply]:
        """The answer so far, again and again."""
        start = time.perf_counter()
        with self.busy:
            vision = self._encode(seen)
        stream = self.model.stream(seen.media, question, max_new_tokens=self.config.max_new_tokens)
        yield from _written(stream, start, vision)

    def ask_dense(self, path: str, seen: Seen, question: str) -> Iterator[Reply]:
        """The same frames as the base model itself looks at them, where that fits; otherwise why it does not."""
        limit, needed = self.model.family.context_length, seen.facts["dense_tokens"] + self.config.max_new_tokens
        if limit is not None and needed > limit:
            yield Reply(refusal=f"would read {needed:,} tokens; its LLM was made for {limit:,}. Take fewer frames")
            return
        start = time.perf_counter()
        with self.busy, self.model.disabled():
            own, self.model.settings = self.model.settings, seen.settings  # the model is ours, and we hold the lock
            try:
                stream = self.model.stream(path, question, max_new_tokens=self.config.max_new_tokens)
            finally:
                self.model.settings = own
        yield from _written(stream, start, {})


def _written(stream: TextStream, start: float, spent: Mapping[str, float]) -> Iterator[Reply]:
    """The answer so far, whenever there is more of it. start: when the question was asked; spent: seconds of stages
    before the LLM's."""
    with closing(stream):
        for _ in stream:
            yield Reply(stream.text, time.perf_counter() - start)
    stats = {**stream.stats, "seconds": {**spent, **stream.stats["seconds"]}}
    yield Reply(stream.text.strip(), time.perf_counter() - start, stats)


def _digest(*facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()
