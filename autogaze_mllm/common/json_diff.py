"""Where two trees of json values differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, value before, value now) wherever two trees of json values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif _plain(before) != _plain(now):
        yield name, str(_plain(before)), str(_plain(now))


def _plain(value: Any) -> Any:
    """Tuples come back from json as lists."""
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
