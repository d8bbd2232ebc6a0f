"""Short names for things that have long ones: told apart, and fit for plots."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from ..storage.json_text import writable


def told_apart(names: Iterable[str]) -> dict[str, str]:
    """Name -> the last parts of it as a path, as few as no other name ends in: "b1/gaze" and "b2/gaze" where a last
    part alone would be one name for two models."""
    wanted = list(dict.fromkeys(names))
    parts = {name: PurePath(name).parts or (name,) for name in wanted}
    found = {}
    for name in wanted:
        for length in range(1, len(parts[name]) + 1):
            end = parts[name][-length:]
            if all(parts[other][-length:] != end for other in wanted if other != name):
                found[name] = "/".join(end).replace("//", "/")
                break
        else:
            found[name] = name
    taken = list(found.values())
    return {name: name if taken.count(label) > 1 else label for name, label in found.items()}


def in_plot(label: str) -> str:
    """As text that matplotlib draws as it stands: no formulas between dollar signs, not hidden for its first sign."""
    plain = writable(label).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
