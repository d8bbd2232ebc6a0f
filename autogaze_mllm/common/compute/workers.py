"""Work side by side on the CPU.

Selecting patches is a long row of small operations. Split over the cores one by one, they wait for each other more than
they compute; a few clips for each core, on that core alone, do not.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


class CoreWorkers:
    """Threads that run torch on their share of the cores; a context manager. count: 1 runs everything in place."""

    def __init__(self, device: torch.device) -> None:
        cores = torch.get_num_threads()
        self.count = cores if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            started = threading.Barrier(self.count + 1)
            self._pool = ThreadPoolExecutor(self.count, "core", initializer=_on_one_core, initargs=(started,))
            for _ in range(self.count):
                self._pool.submit(lambda: None)
            started.wait()
            torch.set_num_threads(cores)  # what threads of others begin with

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> Iterable[T]:
        """Results in order, each as soon as it is there. Gradients are off in the threads."""
        return map(function, items) if self._pool is None else self._pool.map(function, items)

    def __enter__(self) -> CoreWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _on_one_core(started: threading.Barrier) -> None:
    torch.set_num_threads(1)  # of this thread ...
    torch.get_num_threads()  # ... and now it is settled, whatever others set
    torch.set_grad_enabled(False)
    started.wait()


class Prefetch(Generic[T]):
    """Runs an iterable in a background thread, one item ahead: the next is begun when the last one was taken. A context
    manager: leaving it stops the thread."""

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source
        self._ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue()
        self._room = threading.Semaphore(1)
        self._stop = threading.Event()
        here = contextvars.copy_context()  # whether the call is still wanted is asked there, too
        self._thread = threading.Thread(target=here.run, args=(self._run,), daemon=True, name="video reader")

    def _run(self) -> None:
        try:
            source = iter(self._source)
            while self._wait_for_room():
                try:
                    self._ready.put(("item", next(source)))
                except StopIteration:
                    self._ready.put(("end", None))
                    return
        except BaseException as error:  # it is raised again where the items are taken
            self._ready.put(("error", error))

    def _wait_for_room(self) -> bool:
        """False when the thread is to stop."""
        while not self._stop.is_set():
            if self._room.acquire(timeout=0.1):
                return True
        return False

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._items()

    def _items(self) -> Iterator[T]:
        while True:
            kind, value = self._ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            self._room.release()
            yield value  # type: ignore[misc]

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
