"""What families share whose towers take pictures of any size: every video is gazed at its own shape, as a whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ....common.errors import InputError
from ....common.pixels import resize_frames
from ....gaze.gazed_video import GazedVideo
from ....gaze.grid import PatchGrid
from ....gaze.settings import VideoSettings
from ....gaze.token_map import TokenMap
from ....vision.any_size import AnySizeTower, CoarsePositions
from ...media import Layout
from ..base import Family


class AnySizeFamily(Family):
    """tower_class: how the base's tower is called. dense_tokens: the fewest and the most tokens of a dense frame, by
    the published preprocessing of videos."""

    tower_class: ClassVar[type[AnySizeTower]]
    dense_tokens: ClassVar[tuple[int, int]]
    after_media = ""

    @classmethod
    def check_tower(cls, config: Any) -> None:
        """The tower is part of the family."""

    def check_settings(self, settings: VideoSettings) -> None:
        if settings.thumbnails and (settings.thumbnail_ratio != 1 or settings.thumbnail_loss):
            raise InputError(
                f"{self.title}: a frame chosen as a thumbnail keeps a coarse scale whole, and no less: leave "
                "thumbnail_ratio and thumbnail_loss as they are"
            )

    @property
    def _vision(self) -> Any:
        return self.config.vision_config

    @property
    def tubelet(self) -> int:
        """Frames that a patch of the tower reaches over."""
        return 1

    @property
    def patch(self) -> int:
        return self._vision.patch_size * self.group

    @property
    def feature_layers(self) -> Sequence[int | None]:
        return [None]

    def default_scales(self, grid: PatchGrid) -> None:
        """Every video has its own."""

    def make_tower(self, grid: PatchGrid, **options: Any) -> AnySizeTower:
        if not options["frame_independent"]:
            raise InputError(f"{self.title}: its tower looks at each moment by itself; frame_independent must be True")
        if options["backend"] != "sdpa" or options["compile"]:
            raise InputError(f"{self.title}: how its tower attends and is compiled is chosen where the base is loaded")
        size = self._vision.patch_size
        coarse: CoarsePositions = options.get("coarse_positions") or "native"
        return self.tower_class(self.tower, size, self.group, self.tubelet, grid.cells, options["scales"], coarse)

    def gazed_features(self, tower: AnySizeTower, videos: Sequence[GazedVideo]) -> list[torch.Tensor]:
        return [self._features(tower, video) for video in videos]

    def _features(self, tower: AnySizeTower, video: GazedVideo) -> torch.Tensor:
        found = tower.encode(video)
        return found[tower.token_order(video, raster=True).to(found.device)]

    def token_map(self, gazed: GazedVideo) -> TokenMap:
        return TokenMap.of(gazed, raster=True, across_tiles=True)

    def layout(self, video: TokenMap) -> Layout:
        return self.video_layout(video.counts, video.seconds)

    @abstractmethod
    def video_layout(self, counts: Sequence[int], seconds: Sequence[float]) -> Layout:
        """counts, seconds: tokens and time of each tubelet."""

    def frame_pixels(self, frames: np.ndarray) -> torch.Tensor:
        height, width = self._dense_size(frames.shape[1], frames.shape[2])
        return self.pixels.normalize(resize_frames(frames, height, width, torch.device("cpu")).float() / 255)

    def _dense_size(self, height: int, width: int) -> tuple[int, int]:
        """A frame's size in whole tokens, its shape kept as nearly as that allows."""
        fewest, most = self.dense_tokens
        area = height * width / self.patch**2
        factor = (min(max(area, fewest), most) / area) ** 0.5
        rows, columns = (max(round(side * factor / self.patch), 1) for side in (height, width))
        while rows * columns > most:
            rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
        return rows * self.patch, columns * self.patch

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        if size is None:
            raise InputError(f"{self.title}: how many tokens a dense video has depends on its size")
        height, width = self._dense_size(*size)
        return -(-frames // self.tubelet) * (height // self.patch) * (width // self.patch)


def joined_features(found: Any) -> torch.Tensor:
    """What get_image_features and get_video_features of the bases give, as one tensor (n, (1 + deepstack) * D). Some of
    them split it by pictures."""
    parts = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
    whole = [part if isinstance(part, torch.Tensor) else torch.cat(list(part)) for part in parts]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in whole], dim=-1)
