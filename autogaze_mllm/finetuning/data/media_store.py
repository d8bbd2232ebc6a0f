"""Videos are gazed once, before training, into a cache that every epoch and every process reads.

Notable design decisions:
- the videos are shared out among the processes, and each entry is made under a lock of its own, so no video is decoded
  twice, not even by trainings that run side by side;
- on machines that do not share the folder, each makes what it cannot see;
- visual tokens are counted from what is stored, so the length of every sample is known before the first step;
- where the gaze model is trained, these lengths are what samples are ordered by, and the cache serves nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...common.compute import distributed
from ...common.errors import InputError, listed
from ...common.pixels import open_picture
from ...common.storage.locks import wait_lock
from ...gaze.cache import VideoCache
from ...gaze.gazed_video import GazedVideo
from ...gaze.token_map import TokenMap
from ...mllm.media import Layout, Media
from ...mllm.model import GazedModel
from ..rollouts import VideoRef
from .sample_gaze import KEY, GazeSpecs
from .samples import SHOWN_FAULTS, Medium, Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """alone: for an image, whether it is the only one of its sample; some models cut only such an image into crops."""

    medium: Medium
    alone: bool = False


class GazedCache(VideoCache):
    """Keeps gazed videos only: visual tokens would be those of weights that are about to change."""

    def get_tokens(self, key: str) -> None:
        return None

    def put_tokens(self, key: str, tokens: torch.Tensor, stats: dict[str, Any], token_map: TokenMap) -> None:
        return None


class MediaStore:
    """Media of samples as `GazedModel.forward` takes them, and how many visual tokens each has.

    keep_videos: give videos as such, because the gaze model is trained and sees them anew each time.
    """

    def __init__(self, model: GazedModel, cache: VideoCache, keep_videos: bool = False) -> None:
        self.model, self.cache, self.keep_videos = model, cache, keep_videos
        self._looks = GazeSpecs(model)
        self._keys: dict[Medium, str] = {}
        self._layouts: dict[_Wanted, Layout] = {}
        self._patches: dict[Medium, int] = {}

    def prepare(self, samples: Sequence[Sample], progress: bool = False) -> dict[str, int]:
        """Gazes what is not in the cache yet and counts tokens. Everyone must call it, with the same samples.

        -> videos, and how many of them were gazed now. Raises InputError listing media that cannot be used.
        """
        wanted = list(dict.fromkeys(item for sample in samples for item in _wanted_media(sample)))
        videos = list(dict.fromkeys(item.medium for item in wanted if item.medium.kind == "video"))
        if self.keep_videos and any(video.gaze_spec is not None for video in videos):
            raise InputError(f"where gaze is trained it looks at all videos itself: take {KEY!r} out of the samples")
        images = [item for item in wanted if item.medium.kind == "image"]
        faults: dict[str, str] = {}
        own = videos[distributed.rank() :: distributed.count()]
        made = self._gaze_all(own, faults, progress)
        self._keys = distributed.merged(self._keys)
        # Where the folder is not shared, the other machines' entries are missing here.
        unseen = [video for video in videos if video in self._keys and not self._entry(video).exists()]
        made += self._gaze_all(unseen[distributed.local_rank() :: distributed.local_count()], faults, progress)
        distributed.wait()
        layouts: dict[_Wanted, Layout] = {}
        patches: dict[Medium, int] = {}
        for video in own:
            if video in self._keys:
                stored = self._stored_map(video)
                layouts[_Wanted(video)] = self.model.family.layout(stored)
                patches[video] = len(stored)
        for item in tqdm(
            images[distributed.rank() :: distributed.count()], desc="images", disable=not progress or not images
        ):
            try:
                layouts[item] = self._image(item).layout
            except InputError as error:
                faults[str(item.medium.path)] = str(error)
        self._layouts |= distributed.merged(layouts)
        self._patches |= distributed.merged(patches)
        faults = distributed.merged(faults)
        if faults:
            shown = listed(list(faults.values()), SHOWN_FAULTS, "; ")
            raise InputError(f"media cannot be used: {shown} (`finetune --check` names their samples)")
        return {"videos": len(videos), "gazed": sum(distributed.gathered(made))}

    def tokens(self, sample: Sample) -> list[int]:
        """Visual tokens of each medium of a sample that was prepared."""
        return [_tokens(layout) for layout in self.layouts(sample)]

    def layouts(self, sample: Sample) -> list[Layout]:
        """What each medium of a sample that was prepared becomes in the prompt."""
        return [self._layouts[item] for item in _wanted_media(sample)]

    def patches(self, sample: Sample) -> int:
        """Patches that the tower encodes: those kept of the videos, and about as many as the images have."""
        joined = max(36 // self.model.family.gazed_count([36]), 1)  # patches to a visual token
        return sum(
            self._patches[item.medium] if item.medium.kind == "video" else _tokens(self._layouts[item]) * joined
            for item in _wanted_media(sample)
        )

    def media(self, sample: Sample) -> Sequence[Media | VideoRef]:
        """The media themselves, gazed videos read from the cache."""
        found: list[Media | VideoRef] = []
        for item in _wanted_media(sample):
            if item.medium.kind == "video" and self.keep_videos:
                found.append(VideoRef(item.medium.video(), _tokens(self._layouts[item])))
            elif item.medium.kind == "video":
                found.append(self.model.gazed_media(self._gazed(item.medium)))
            else:
                found.append(self._image(item))
        return found

    def _image(self, item: _Wanted) -> Media:
        return self.model.family.dense_image(open_picture(item.medium.path), alone=item.alone)

    def _gaze_all(self, videos: Sequence[Medium], faults: dict[str, str], progress: bool) -> int:
        """How many had to be gazed."""
        made = 0
        for video in tqdm(videos, desc="gazing", unit="video", disable=not progress or not videos):
            try:
                key = self._keys[video] = self._keys.get(video) or self._key(video)
                with wait_lock(self.cache.folder / f".{key}.lock"):  # freed when the process ends, however it ends
                    if not self._entry(video).exists():
                        self._make(video)
                        made += 1
            except InputError as error:
                faults[str(video.path)] = str(error)
                self._keys.pop(video, None)
        return made

    def _look_at(self, video: Medium) -> GazedVideo:
        return self.model.gaze_video(video.video(), **self._looks.options(video.gaze_spec))

    def _make(self, video: Medium) -> None:
        self._look_at(video)  # looks into the cache once more, and puts the result there
        if not self._entry(video).exists():
            raise InputError(f"{self.cache.folder}: cannot write here: fine-tuning needs room for the gazed videos")

    def _gazed(self, video: Medium) -> GazedVideo:
        found = self.cache.get_gazed(self._keys[video])
        if found is None:  # removed, or damaged, since it was prepared
            if torch.utils.data.get_worker_info() is not None and self.model.device.type != "cpu":
                reason = "its cache entry has gone; start again with --resume, which gazes it anew"
                raise InputError(f"{video.path}: {reason}")
            logger.warning("%s: its cache entry has gone and is made anew", video.path)
            found = self._look_at(video)
        return found

    def _key(self, video: Medium) -> str:
        key = self.model.gazed_key(video.video(), **self._looks.options(video.gaze_spec))
        if key is None:
            raise InputError("results of a selector of your own cannot be cached, which fine-tuning needs")
        return key

    def _entry(self, video: Medium) -> Path:
        return self.cache.gazed_path(self._keys[video])

    def _stored_map(self, video: Medium) -> TokenMap:
        """Where the visual tokens of a gazed video lie, without reading its patches."""
        try:
            stored = GazedVideo.load(self._entry(video), patches=False)
        except InputError:  # damaged: this drops and makes it anew
            stored = self._gazed(video)
        return self.model.family.token_map(stored)


def _tokens(layout: Layout) -> int:
    return sum(piece for piece in layout if isinstance(piece, int))


def _wanted_media(sample: Sample) -> Iterator[_Wanted]:
    images = sum(medium.kind == "image" for medium in sample.media)
    for medium in sample.media:
        yield _Wanted(medium, alone=medium.kind == "image" and images == 1)
