"""What every back end runs: a model that indexes one video after another.

A worker computes on one core, whatever the back end and however many workers there are, so that what is stored does not
depend on it: sums in other orders differ in their last bits.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError, first_line
from ..common.storage.files import output_folder
from ..common.storage.paths import shown_name
from ..gaze.autogaze.pretrained import BUNDLED
from ..gaze.cache import GAZED, TOKENS, VideoCache
from ..gaze.pipeline import gaze_video
from ..mllm.loading import load_or_wrap
from ..mllm.model import GazedModel
from ..video.sources import Video
from .attempts import MOST, Attempts
from .folder import IndexInfo, IndexStore, StoreError
from .job import IndexJob, chosen_device
from .records import Record, seen, set_aside

logger = logging.getLogger(__name__)


class Worker:
    """number: which of the workers on this machine it is; it chooses one of several accelerators.

    Raises InputError for what cannot be loaded or cannot be kept.
    """

    def __init__(self, job: IndexJob, number: int = 0) -> None:
        self.job, self.out = job, output_folder(job.out)
        self.attempts, self.store = Attempts(self.out), IndexStore(self.out)
        device = chosen_device(job.device, number)
        if device == "cpu":
            torch.set_num_threads(1)
        source = job.model or BUNDLED
        model = load_or_wrap(source, job.gaze, settings=job.settings, device=device, cache=self.store, **job.overrides)
        model.family.check_settings(model.settings)
        self.gaze, self.settings, self.form = model.gaze, model.settings, model.video_form
        self.gaze_facts, self.token_facts = _facts(model, job)
        self.model = model if job.encode else None  # otherwise it goes: what is left is small

    def info(self) -> IndexInfo:
        """What this index is, for its folder."""
        folder = str(Path(self.job.folder).resolve())
        named = self.job.gaze if isinstance(self.job.gaze, str) else None
        facts = {"gaze": self.gaze_facts, "tokens": self.token_facts}
        return IndexInfo(folder, self.job.model, named, self.settings.to_dict(), facts)

    def index(self, video: str) -> Record:
        """The record of a video, whose results are on the disk by then. Raises StoreError where they cannot be."""
        path = Path(self.job.folder, video)
        record = seen(path, video)
        if record.error is not None:
            return record
        if self.attempts.count(video) >= MOST:
            return replace(record, error=set_aside(path))
        with self.attempts.counted(video):
            start = time.perf_counter()
            try:
                record = replace(record, content=Video(path).content())
                record = self._indexed(Video(path), record)
            except StoreError:
                raise
            except InputError as error:
                return replace(record, error=str(error))
            except (MemoryError, torch.OutOfMemoryError):
                return replace(record, error=f"{shown_name(str(path))}: too little memory for it")
            except Exception as error:  # the other videos of a long run are not to suffer from it
                logger.exception("%s", shown_name(str(path)))
                text = f"{type(error).__name__} is a fault of autogaze-mllm, please report it ({first_line(error)})"
                return replace(record, error=f"{shown_name(str(path))}: {text}")
            seconds = {**record.seconds, "wall": time.perf_counter() - start}
            return replace(record, seconds={stage: round(spent, 4) for stage, spent in seconds.items()})

    def _indexed(self, source: Video, record: Record) -> Record:
        key = VideoCache.key(source, **self.gaze_facts)
        gazed = self.store.get_gazed(key)
        if gazed is None:
            gazed = gaze_video(source, self.gaze, self.settings, **self.form)
            self.store.put_gazed(key, gazed)
        stats, seconds = gazed.stats, dict(gazed.stats.get("seconds", {}))
        record = replace(
            record,
            gazed=f"{key}{GAZED}",
            settings=self.settings.to_dict(),
            seconds=seconds,
            **{name: stats[name] for name in ("frames", "frames_lost", "patches", "patches_total")},
        )
        if self.model is None:
            return record
        del gazed
        self.model.encode_video(source)  # finds what was gazed
        for stage, spent in self.model.stats["seconds"].items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
        tokens = VideoCache.key(source, **self.gaze_facts, **self.token_facts) + TOKENS
        return replace(record, tokens=tokens, visual_tokens=self.model.stats["visual_tokens"])


def _facts(model: GazedModel, job: IndexJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that decides gazed videos, and what besides decides their visual tokens (nothing where none are kept)."""
    gaze, tokens = model.cache_facts()
    if gaze is None:
        raise InputError("what this selector keeps cannot be kept on disk: it has no identity")
    if not job.encode:
        return gaze, {}
    if tokens is None:
        raise InputError(
            f"visual tokens of {job.model} cannot be kept: its weights are of a kind that cannot be looked at; index "
            "with --model instead of --encode"
        )
    return gaze, tokens
