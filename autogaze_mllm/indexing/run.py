"""A run of `index`: what is there already is left as it is, what is not is handed to workers, and written down.

What a back end has is the videos that it is at. What was done, what failed and how often it was tried stands in the
folder of the index, so that any back end goes on where another one stopped, or was killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..common.compute.distributed import Shard, local_count
from ..common.errors import InputError
from ..common.extras import require_extra
from ..common.storage.files import output_folder
from ..common.storage.locks import run_lock
from ..video.folder import videos_below
from .attempts import Attempts
from .folder import claim
from .job import IndexJob, chosen_device
from .processes import WorkerProcesses
from .ray_actors import RayActors
from .records import Record, RecordLog, put_together, read_records, seen


@dataclass(frozen=True)
class IndexResult:
    """records: of the videos of this process, old and new, sorted by name. made: how many of them it tried now.
    seconds: that this took by the clock, without the start of the first worker."""

    records: Sequence[Record]
    made: int
    seconds: float

    @classmethod
    def joined(cls, results: Sequence[IndexResult]) -> IndexResult:
        """Of several processes that were at work at the same time."""
        records = [record for result in results for record in result.records]
        records.sort(key=lambda record: record.path)
        return cls(records, sum(result.made for result in results), max(result.seconds for result in results))

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.error is not None]

    def to_dict(self, out: str) -> dict[str, Any]:
        done = [record for record in self.records if record.error is None]
        return {
            "index": out,
            "videos": len(self.records),
            "tried": self.made,
            "failed": [{"path": record.path, "error": record.error} for record in self.failed],
            "patches": sum(record.patches for record in done),
            "patches_total": sum(record.patches_total for record in done),
            "seconds": round(self.seconds, 2),
            "videos_per_hour": round(3600 * self.made / self.seconds, 1) if self.made else None,
        }


def run_index(
    job: IndexJob,
    *,
    workers: int,
    ray: str | None = None,
    shard: Shard | None = None,
    retry_failed: bool = False,
    progress: bool = False,
) -> IndexResult:
    """Indexes the videos of `job.folder` that are this process's. workers: processes at most; 0: as many as the machine
    (with Ray: the cluster) has room for. ray: address of a cluster, or "local".

    Raises InputError for a folder without videos, and for an index of other settings.
    """
    if ray is not None:
        require_extra("ray", "--ray")
    everything = videos_below(job.folder)
    if not everything:
        raise InputError(f"{job.folder}: there are no videos in this folder or in those below it")
    shard, out = shard or Shard(), output_folder(job.out)
    mine = list(shard.part({video: [video] for video in everything}))
    put_together(out)  # what a killed run has left
    with _ends_on_sigterm():
        try:
            with run_lock(out, f"-{shard.rank:05}"):
                result = _run(job, out, mine, workers, ray, shard, retry_failed, progress)
        finally:
            put_together(out)
    return result


def _run(
    job: IndexJob,
    out: Path,
    videos: Sequence[str],
    workers: int,
    ray: str | None,
    shard: Shard,
    retry_failed: bool,
    progress: bool,
) -> IndexResult:
    with ExitStack() as stack:
        # With Ray one process says what the index will be; this machine may have no accelerator.
        here = replace(job, device="cpu") if ray else job
        processes = stack.enter_context(WorkerProcesses(here, 1 if ray else workers or default_workers(job)))
        claim(out, processes.info())
        stored = _known(job, out, videos)
        found = {video: record for video, record in stored.items() if record.error is None or not retry_failed}
        waiting = [video for video in videos if video not in found]
        for video in waiting if retry_failed else ():
            Attempts(out).set(video, 0)
        records = processes.records
        if ray is not None and waiting:
            processes.stop()  # actors load models of their own
            records = stack.enter_context(RayActors(job, workers, ray)).records
        log = stack.enter_context(RecordLog(out, shard.rank))
        bar = stack.enter_context(_bar(len(videos), len(found), progress))
        start, failed = time.perf_counter(), sum(record.error is not None for record in found.values())
        for record in records(waiting) if waiting else ():
            log.add(record)
            found[record.path] = record
            failed += record.error is not None
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
        seconds = time.perf_counter() - start
    return IndexResult([found[video] for video in videos], len(waiting), seconds)


def _known(job: IndexJob, out: Path, videos: Sequence[str]) -> dict[str, Record]:
    """What is known of the videos as they are now. One whose results are gone is not known."""
    stored = read_records(out)
    found = {}
    for video in videos:
        record = stored.get(video)
        if record is None:
            continue
        now = seen(Path(job.folder, video), video)
        files = [out / name for name in (record.gazed, record.tokens) if name is not None]
        if (now.bytes, now.modified) == (record.bytes, record.modified) and all(file.exists() for file in files):
            found[video] = record
    return found


def _bar(total: int, done: int, shown: bool) -> tqdm:
    return tqdm(total=total, initial=done, unit="video", desc="indexing", disable=not shown, smoothing=0.05)


def default_workers(job: IndexJob) -> int:
    """One for each accelerator, or for each core where there is none; the processes of a launcher share the cores."""
    device = job.device or chosen_device(None, 0)
    if device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(cores // local_count(), 1)
    return torch.cuda.device_count() if job.device is None and device.startswith("cuda") else 1


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Inside, what a scheduler sends before it kills is taken as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
