"""A disk cache for gazed videos and their visual tokens, addressed by content.

Notable design decisions:
- the key is made of the video's bytes (of frames in memory, their pixels and times) and of everything that decides the
  result (settings, selector, grid, pixels, and for tokens the weights), so a changed video or model is a miss (of
  weights, evenly spread values are compared);
- entries are written beside their place and renamed when complete: two processes may fill the cache at once, and a
  killed one leaves nothing that is trusted. Entries have a checksum: a damaged one is dropped, and is a miss;
- the entries used longest ago go first when the size limit is passed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from ..common.errors import InputError
from ..common.storage.files import output_folder
from ..common.storage.hashing import default_folder
from ..common.storage.summed import read_summed, write_summed
from ..video.sources import VideoLike, as_video
from .gazed_video import GazedVideo
from .token_map import TokenMap

T = TypeVar("T")
logger = logging.getLogger(__name__)

VERSION = 2  # raise it when the same settings begin to give another result
GAZED, TOKENS = ".gazed.safetensors", ".tokens.safetensors"
STALE_SECONDS = 24 * 3600  # half-written files older than this belong to nobody


@dataclass(frozen=True)
class CacheEntry:
    """key: the first part of the file names; kind: "gazed" or "tokens"; used: seconds since the epoch."""

    path: Path
    key: str
    kind: str
    bytes: int
    used: float


class VideoCache:
    """limit: bytes that the folder may hold."""

    def __init__(self, folder: str | Path | None = None, limit: int = 20 << 30) -> None:
        self.folder = output_folder(folder or default_folder())
        self.limit = limit

    @staticmethod
    def key(source: VideoLike, **facts: Any) -> str:
        """Of a video and everything that decides the result (json values)."""
        told = json.dumps({"content": as_video(source).content(), "version": VERSION, **facts}, sort_keys=True)
        return hashlib.blake2b(told.encode(), digest_size=20).hexdigest()

    def get_gazed(self, key: str) -> GazedVideo | None:
        path = self.folder / (key + GAZED)
        return self._read(path, lambda: GazedVideo.load(path))

    def put_gazed(self, key: str, gazed: GazedVideo) -> None:
        with self._writing():
            gazed.save(self.folder / (key + GAZED))
            self.prune()

    def get_tokens(self, key: str) -> tuple[torch.Tensor, dict[str, Any], TokenMap] | None:
        """Visual tokens (n, D), the stats that were kept with them, and where they lie."""
        path = self.folder / (key + TOKENS)

        def read() -> tuple[torch.Tensor, dict[str, Any], TokenMap]:
            tensors, facts = read_summed(path, ("tokens", "positions", "tile"), "visual_tokens", "visual tokens")
            tokens = tensors["tokens"]
            if not tokens.is_floating_point():
                raise InputError(f"{path}: not visual tokens ({tokens.dtype})")
            places = tensors["positions"], tensors["tile"]
            token_map = facts.made("map", dict[str, Any], lambda found: TokenMap.from_facts(found, *places))
            return tokens, facts.get("stats", dict[str, Any]), token_map

        return self._read(path, read)

    def _read(self, path: Path, read: Callable[[], T]) -> T | None:
        """What an entry holds. One that is damaged goes, with a word, and is made anew."""
        if not path.exists():
            return None
        try:
            found = read()
        except InputError as error:
            if not path.exists():  # another process has just removed it
                return None
            logger.warning("%s; this entry of the cache is made anew", error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        self._touch(path)
        return found

    def put_tokens(self, key: str, tokens: torch.Tensor, stats: dict[str, Any], token_map: TokenMap) -> None:
        with self._writing():
            kept = {"tokens": tokens, "positions": token_map.positions, "tile": token_map.tile}
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
            facts = {"stats": stats, "map": token_map.facts()}
            write_summed(self.folder / (key + TOKENS), kept, "visual_tokens", facts)
            self.prune()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A cache that cannot be written (a full disk, say) costs time later, never the answer now."""
        try:
            yield
        except (OSError, SafetensorError, InputError) as error:
            logger.warning("%s: nothing was kept of this video (%s)", self.folder, error)

    def entries(self) -> list[CacheEntry]:
        """Latest used first."""
        found = []
        for kind, ending in (("gazed", GAZED), ("tokens", TOKENS)):
            for path in self.folder.glob(f"*{ending}"):
                if path.name.startswith("."):
                    continue
                try:
                    facts = path.stat()
                except FileNotFoundError:  # another process has just removed it
                    continue
                found.append(CacheEntry(path, path.name.removesuffix(ending), kind, facts.st_size, facts.st_mtime))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def prune(self) -> None:
        """Removes what was used longest ago until the limit holds, and old half-written files."""
        total = 0
        for entry in self.entries():
            total += entry.bytes
            if total > self.limit:
                entry.path.unlink(missing_ok=True)
        for path in self.folder.glob(".*"):
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink(missing_ok=True)
            except OSError:
                continue

    def clear(self) -> int:
        """Removes everything; returns how many bytes that were."""
        entries = self.entries()
        for path in [entry.path for entry in entries] + list(self.folder.glob(".*")):
            path.unlink(missing_ok=True)
        return sum(entry.bytes for entry in entries)

    @staticmethod
    def _touch(path: Path) -> None:
        try:
            os.utime(path)
        except OSError:  # pruned by another process after it was read, or not ours to change
            return
