"""A long call that somebody else may end: it asks between its steps whether it is still wanted.

What may be ended is told by a context variable, so that nothing in between has to hand it on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class CancelledCall(Exception):
    """Nobody wants the result any more."""


class Cancellation:
    """Set once, by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self.cancelled = False

    def cancel(self) -> None:
        with self._lock:
            self.cancelled, listeners, self._listeners = True, self._listeners, []
        for listener in listeners:
            listener()

    def when_cancelled(self, listener: Callable[[], None]) -> None:
        """For calls that cannot ask, because they wait. listener: called once, in whatever thread cancels."""
        with self._lock:
            if not self.cancelled:
                self._listeners.append(listener)
                return
        listener()

    def check(self) -> None:
        """Raises CancelledCall."""
        if self.cancelled:
            raise CancelledCall


_current: ContextVar[Cancellation | None] = ContextVar("what may end this call", default=None)


@contextmanager
def cancellable(by: Cancellation) -> Iterator[None]:
    """Inside, `check_cancelled` looks at it."""
    before = _current.set(by)
    try:
        yield
    finally:
        _current.reset(before)


def check_cancelled() -> None:
    """Raises CancelledCall where the call under way is not wanted any more."""
    current = _current.get()
    if current is not None:
        current.check()
