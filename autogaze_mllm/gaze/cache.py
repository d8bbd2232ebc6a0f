"""A disk cache for gazed videos and their visual tokens, addressed by content.

Notable design decisions:
- the key is made of the video's bytes (of frames in memory, their pixels and times) and of everything that decides the
  result (settings, selector, grid, pixels, and for tokens the weights), so a changed video or model is a miss (of
  weights, evenly spread values are compared);
- entries are written beside their place and renamed when complete: two processes may fill the cache at once, and a
  killed one leaves nothing that is trusted. Entries have a checksum: a damaged one is dropped, and is a miss;
- the entries used longest ago go first when the size limit is passed;
- an index, a folder that `autogaze-mllm index` filled, is looked into first. It is never changed, and has no limit.
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
from ..common.storage.paths import is_file
from ..common.storage.summed import read_summed, write_summed
from ..video.sources import VideoLike, as_video
from .gazed_video import GazedVideo
from .token_map import TokenMap

T = TypeVar("T")
logger = logging.getLogger(__name__)

VERSION = 2  # raise it when the same settings begin to give another result
GAZED, TOKENS = ".gazed.safetensors", ".tokens.safetensors"
INDEX_FILE = "index.json"  # in the folder of an index: what was indexed, and how
NOWHERE = Path(os.devnull, "nowhere")  # where nothing is found, and nothing is kept
STALE_SECONDS = 24 * 3600  # half-written files older than this belong to nobody


def is_index(folder: str | Path) -> bool:
    """Whether `autogaze-mllm index` filled this folder."""
    return is_file(Path(folder) / INDEX_FILE)


@dataclass(frozen=True)
class CacheEntry:
    """key: the first part of the file names; kind: "gazed" or "tokens"; used: seconds since the epoch."""

    path: Path
    key: str
    kind: str
    bytes: int
    used: float


class VideoCache:
    """limit: bytes that the folder may hold. index: a folder that `autogaze-mllm index` filled, to look into first."""

    def __init__(
        self, folder: str | Path | None = None, limit: int = 20 << 30, index: str | Path | None = None
    ) -> None:
        if folder is not None and is_index(folder):
            raise InputError(f"{folder}: is an index, which a cache would empty as it fills: give it as index=")
        if index is not None and not is_index(index):
            raise InputError(f"{index}: no index here (there is no {INDEX_FILE}); `autogaze-mllm index` makes one")
        self.folder = NOWHERE if folder is None and index is not None else output_folder(folder or default_folder())
        if self.folder == NOWHERE:
            try:
                self.folder = output_folder(default_folder())
            except InputError as error:  # as where a service finds an index, and has no home
                logger.warning("what is not in the index is not kept: %s", error)
        self.limit = limit
        self.index = None if index is None else Path(index)

    @staticmethod
    def key(source: VideoLike, **facts: Any) -> str:
        """Of a video and everything that decides the result (json values)."""
        text = json.dumps({"content": as_video(source).content(), "version": VERSION, **facts}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()

    def gazed_path(self, key: str) -> Path:
        """Where a gazed video is, or would be put."""
        return next((path for path in self._places(key + GAZED) if path.exists()), self.folder / (key + GAZED))

    def get_gazed(self, key: str) -> GazedVideo | None:
        return self._read(key + GAZED, GazedVideo.load)

    def put_gazed(self, key: str, gazed: GazedVideo) -> None:
        with self._writing():
            gazed.save(self.folder / (key + GAZED))
            self.prune()

    def get_tokens(self, key: str) -> tuple[torch.Tensor, dict[str, Any], TokenMap] | None:
        """Visual tokens (n, D), the stats that were kept with them, and where they lie."""

        def read(path: Path) -> tuple[torch.Tensor, dict[str, Any], TokenMap]:
            tensors, facts = read_summed(path, ("tokens", "positions", "tile"), "visual_tokens", "visual tokens")
            tokens = tensors["tokens"]
            if not tokens.is_floating_point():
                raise InputError(f"{path}: not visual tokens ({tokens.dtype})")
            positions = tensors["positions"], tensors["tile"]
            token_map = facts.made("map", dict[str, Any], lambda found: TokenMap.from_facts(found, *positions))
            return tokens, facts.get("stats", dict[str, Any]), token_map

        return self._read(key + TOKENS, read)

    def _places(self, name: str) -> list[Path]:
        return [folder / name for folder in (self.index, self.folder) if folder is not None]

    def _read(self, name: str, read: Callable[[Path], T]) -> T | None:
        """What an entry holds."""
        for path in self._places(name):
            if not path.exists():
                continue
            try:
                found = read(path)
            except InputError as error:
                if path.exists():  # otherwise another process has just removed it
                    self._pass_over(path, error)
                continue
            if path.parent == self.folder:
                self._touch(path)
            return found
        return None

    def _pass_over(self, path: Path, error: InputError) -> None:
        """An entry that is damaged goes, with a word, and is made anew; one of an index is not ours to remove."""
        if path.parent != self.folder:
            logger.warning("%s; this entry of the index is passed over: remove it, and index again", error)
            return
        logger.warning("%s; this entry of the cache is made anew", error)
        with suppress(OSError):
            path.unlink(missing_ok=True)

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
            if self.folder == NOWHERE:  # which was said
                return
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
