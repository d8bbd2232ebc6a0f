"""Models as they lie in the hub's cache: several commits of a repository, of which `main` is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMITS = ("a" * 40, "b" * 40)


def cached_model(root: Path, name: str, commits: Mapping[str, Callable[[Path], object]]) -> None:
    """root: the cache. commits: what writes the files of each; `main` is the last one."""
    stored = root / f"models--{name.replace('/', '--')}"
    for commit, write in commits.items():
        write(stored / "snapshots" / commit)
        (stored / "refs").mkdir(exist_ok=True)
        (stored / "refs" / "main").write_text(commit)


def use_cache(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Nothing is fetched: what is there is all there is."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
