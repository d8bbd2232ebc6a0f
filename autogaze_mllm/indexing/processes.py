"""Workers as processes of this machine, each handed one video at a time.

Notable design decisions:
- not `concurrent.futures`, whose pool is broken for good when a worker is killed: here another one takes its place, and
  the video that it was at is tried once more, last;
- a server process imports the libraries once and forks the workers (where the system can fork), so that another worker
  costs the loading of the model and little else;
- workers overlook Ctrl-C, which a terminal sends to all processes: this one tells them to stop, and they leave no half
  of a file. They end by themselves when this process is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common.errors import InputError
from .attempts import MOST, Attempts
from .folder import IndexInfo, StoreError
from .job import IndexJob
from .records import Record, seen, set_aside

PATIENCE = 20.0  # seconds that a worker has to stop by itself


class WorkerProcesses:
    """A context manager; leaving it stops the workers. count: of workers at most."""

    def __init__(self, job: IndexJob, count: int) -> None:
        self.job, self.count = job, count
        self._attempts = Attempts(Path(job.out))
        self._workers: list[_WorkerProcess] = []
        self._context = _context()

    def info(self) -> IndexInfo:
        """What the first worker says that the index will be. Raises InputError where it refuses."""
        first = self._start()
        while first.info is None:
            self._heard(first)
        return first.info

    def records(self, videos: Sequence[str]) -> Iterator[Record]:
        """The record of each video, as soon as it is there. Raises InputError where none can be made or kept."""
        waiting = deque(videos)
        while waiting or any(worker.video is not None for worker in self._workers):
            while len(self._workers) < min(self.count, len(waiting) + self._busy()):
                self._start()
            for worker in self._workers:
                if waiting and worker.info is not None and worker.video is None:
                    chosen = waiting.popleft()
                    worker.give(chosen, self._attempts.count(chosen))
            for connection in wait([worker.connection for worker in self._workers]):
                worker = next(one for one in self._workers if one.connection is connection)
                video = worker.video
                record = self._heard(worker)
                if record is not None:
                    yield record
                elif worker not in self._workers and video is not None:  # it was killed
                    if self._attempts.count(video) < MOST:
                        waiting.append(video)
                    else:
                        path = Path(self.job.folder, video)
                        yield replace(seen(path, video), error=set_aside(path, _how_it_ended(worker.process.exitcode)))

    def _busy(self) -> int:
        return sum(worker.video is not None for worker in self._workers)

    def _start(self) -> _WorkerProcess:
        taken = {worker.number for worker in self._workers}
        number = next(number for number in range(self.count) if number not in taken)
        worker = _WorkerProcess(self._context, self.job, number)
        self._workers.append(worker)
        return worker

    def _heard(self, worker: _WorkerProcess) -> Record | None:
        """Takes what a worker says, or notes that it is gone."""
        try:
            kind, message = worker.connection.recv()
        except (EOFError, OSError):
            self._workers.remove(worker)
            worker.process.join()
            if worker.info is None:
                code = worker.process.exitcode
                why = f"is there memory for {self.count}?" if (code or 0) < 0 else "the lines above say why"
                raise InputError(f"a worker {_how_it_ended(code)} before its model was loaded; {why}") from None
            return None
        if kind == "refused":
            raise InputError(message)
        if kind == "ready":
            worker.info = message
            return None
        worker.video = None
        return message

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends all workers; what they were at does not count as tried."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            if worker.video is not None:  # it was not the video that ended it
                self._attempts.set(worker.video, min(worker.before, self._attempts.count(worker.video)))
        self._workers.clear()


class _WorkerProcess:
    """info: once it has loaded its model. video: what it is at. before: how often that had been tried."""

    def __init__(self, context: Any, job: IndexJob, number: int) -> None:
        self.number = number
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(job, number, other), daemon=True)
        with _ctrl_c_held_back():
            self.process.start()
        other.close()  # so that its end is noticed
        self.info: IndexInfo | None = None
        self.video: str | None = None
        self.before = 0

    def give(self, video: str, before: int) -> None:
        self.video, self.before = video, before
        try:
            self.connection.send(video)
        except OSError:  # it has just ended, which is noticed when it is listened to
            return

    def stop(self) -> None:
        if self.video is not None or self.info is None:
            self.process.terminate()
        self.connection.close()  # one that waits for a video ends


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.server_start", __name__, f"{__package__}.worker"])
    return context


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Inside, processes are started that do not hear of Ctrl-C before they know what to do about it; this one hears of
    it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets Ctrl-C in again, once it is there
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed (signal {-code})"
    return f"ended (exit code {code})"


def _serve(job: IndexJob, number: int, connection: Connection) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # on its way out a half-written file goes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from transformers.utils import logging as notices

    from .worker import Worker  # with all that a model needs, which the process that hands out the videos does not

    notices.set_verbosity_error()
    notices.disable_progress_bar()
    try:
        worker = Worker(job, number)
        connection.send(("ready", worker.info()))
        while True:
            connection.send(("record", worker.index(connection.recv())))
    except (InputError, StoreError) as error:
        connection.send(("refused", str(error)))
    except (EOFError, BrokenPipeError):  # there is no more to do, or nobody to do it for
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
