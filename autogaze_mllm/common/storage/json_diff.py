"""Where two trees of json values differ: what a run was begun with, and what it is to go on with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import InputError, listed

SHOWN = 12  # differences that are named


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, value before, value now) wherever two trees of json values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif _plain(before) != _plain(now):
        yield name, str(_plain(before)), str(_plain(now))


def check_same(
    where: object, before: dict[str, Any], now: dict[str, Any], advice: str = "choose another folder"
) -> None:
    """Raises InputError with every setting that is another now. where: the run's folder or file."""
    changes = [f"{name}: {old} -> {new}" for name, old, new in differences(before, now)]
    if changes:
        text = listed(changes, SHOWN, "; ")
        raise InputError(f"{where}: this run was begun with other settings; {advice} ({text})")


def _plain(value: Any) -> Any:
    """Tuples come back from json as lists."""
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
