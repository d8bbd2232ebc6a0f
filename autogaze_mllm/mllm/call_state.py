"""What belongs to one call and not to the model: whether gaze is off, and what the call cost.

Several threads may use one model at once. Nothing of a call is therefore an attribute of the model: `disabled()` is a
context variable, which a thread or an asyncio task has to itself, and the stats of the latest call are kept by thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import GazedModel

Stats = dict[str, Any]

_without_gaze: ContextVar[tuple[int, ...]] = ContextVar("models whose gaze is off", default=())
_latest = threading.local()


def gazes(model: GazedModel) -> bool:
    """Whether gaze is on for calls of this model that are made here."""
    return id(model) not in _without_gaze.get()


@contextmanager
def gaze_off(model: GazedModel) -> Iterator[None]:
    """Inside, gaze is off for this model, in this thread or asyncio task alone."""
    _without_gaze.set((*_without_gaze.get(), id(model)))
    try:
        yield
    finally:  # by value: blocks of generators may end in another order than they began in
        off = list(_without_gaze.get())
        if id(model) in off:
            off.remove(id(model))
        _without_gaze.set(tuple(off))


def new_stats() -> Stats:
    return {"seconds": {}}


def add_stats(stats: Stats, numbers: Stats) -> None:
    """Counts numbers up in the stats of a call, seconds stage by stage."""
    for name, value in numbers.items():
        if name == "seconds":
            seconds = stats.setdefault("seconds", {})
            for stage, spent in value.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
        else:
            stats[name] = stats.get(name, 0) + value


def latest_stats(model: GazedModel) -> Stats:
    """Of the model's latest call in this thread; empty where there was none."""
    return _table().get(model, {})


def keep_stats(model: GazedModel, stats: Stats) -> Stats:
    """Makes these the stats of the model's latest call in this thread."""
    _table()[model] = stats
    return stats


def _table() -> weakref.WeakKeyDictionary[GazedModel, Stats]:
    if not hasattr(_latest, "stats"):
        _latest.stats = weakref.WeakKeyDictionary()
    return _latest.stats
