"""Workers as actors of a Ray cluster (the extra `ray`), which Ray Data hands one video at a time.

Ray moves small facts only: videos are read and results are written by the actors, in folders that every node sees.

Notable design decisions:
- one video is one block, in order as they come, and nothing is repartitioned: a shuffle beside actors that hold all
  CPUs waits for ever;
- Ray's own checkpoints are not used: they do nothing for rows that come from memory. What was done stands in the index;
- Ray starts actors anew, and hands them the same video, without end: what kills them, a video or the loading of the
  model, is known by its marks on the disk, and is refused by the next one;
- what an actor refuses comes back as a row, because an error in a row ends Ray's job with a page of traceback.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common.errors import InputError, first_line
from ..common.storage.json_text import Fields, to_json
from .attempts import Attempts
from .folder import StoreError, claim
from .job import IndexJob, placed
from .records import Record

LOCAL = "local"
LOADING, LOADS = "", 8  # what the loading of a model is called among the attempts, and how often it may end an actor
STORE_BYTES = 128 << 20  # of a local cluster's object store: rows are tiny


class RayActors:
    """A context manager, which connects to the cluster or starts one. count: actors; 0: as many as there is room for.
    address: of a cluster, or "local"."""

    def __init__(self, job: IndexJob, count: int, address: str) -> None:
        self.job, self.count, self.address = placed(job), count, address
        self.gpus = 0 if job.device in (None, "cpu") else 1
        self._before: dict[str, int] = {}

    def __enter__(self) -> RayActors:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # ours counts videos
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of how Ray Data itself starts actors
        ray = _ray()
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address == LOCAL:
            cpus = max(self.count, os.cpu_count() or 1)
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        else:
            options["address"] = self.address
        try:
            ray.init(**options)
        except Exception as error:  # each way of not reaching a cluster has its own
            raise InputError(f"--ray {self.address}: no cluster there ({first_line(error)})") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _ray().shutdown()
        attempts = Attempts(Path(self.job.out))
        for video, count in self._before.items():  # stopped on purpose: what was under way does not count
            attempts.set(video, min(count, attempts.count(video)))

    def records(self, videos: Sequence[str]) -> Iterator[Record]:
        """The record of each video, as soon as it is there. Raises InputError where none can be made or kept."""
        from ray.exceptions import RayError

        attempts = Attempts(Path(self.job.out))
        attempts.set(LOADING, 0)
        self._before = {video: attempts.count(video) for video in videos}
        try:
            for row in self._rows(videos):
                found = json.loads(row["told"])
                if "refused" in found:
                    raise InputError(found["refused"])
                record = Record(**Fields(found, "Ray's answer").known(Record))
                self._before.pop(record.path, None)
                yield record
        except RayError as error:
            raise InputError(f"Ray ended the job ({first_line(error)}); the same command goes on with it") from error

    def _rows(self, videos: Sequence[str]) -> Iterator[dict[str, Any]]:
        from ray import data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        rows = data.from_items([{"video": json.dumps(video)} for video in videos], override_num_blocks=len(videos))
        count = min(self.count or self._room(), len(videos))
        made = rows.map(
            _Actor,  # type: ignore[arg-type]  # Ray makes one for each actor
            fn_constructor_args=[self.job],
            compute=data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=self.gpus,
        )
        yield from made.iter_rows()

    def _room(self) -> int:
        found = _ray().cluster_resources()
        return max(int(found.get("GPU" if self.gpus else "CPU", 1)), 1)


class _Actor:
    """Runs on a node of the cluster."""

    def __init__(self, job: IndexJob) -> None:
        from .worker import Worker

        self.refused, attempts = "", Attempts(Path(job.out))
        if attempts.count(LOADING) >= LOADS:
            self.refused = "workers were killed again and again while they loaded the model: is there memory for it?"
            return
        try:
            with attempts.counted(LOADING):
                self.worker = Worker(job)
            claim(self.worker.out, self.worker.info())  # another version on this node would index otherwise
        except InputError as error:
            self.refused = str(error)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """As json: names of files may be no text, which Ray's tables do not take."""
        if not self.refused:
            try:
                return {"told": to_json(self.worker.index(json.loads(row["video"])).to_dict())}
            except StoreError as error:
                self.refused = str(error)
        return {"told": to_json({"refused": self.refused})}


def _ray() -> Any:
    import ray
    import ray.data

    return ray
