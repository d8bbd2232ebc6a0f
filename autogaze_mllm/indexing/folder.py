"""The folder of an index: `index.json` says what is in it and how that was made; gazed videos and visual tokens lie
there as they lie in a cache, under keys of their content and of everything that decides them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..common.errors import InputError
from ..common.storage.files import write_json
from ..common.storage.json_diff import check_same
from ..gaze.cache import INDEX_FILE, VideoCache, is_index
from ..gaze.gazed_video import GazedVideo
from ..gaze.index_info import FORMAT, IndexInfo, read_index

OF_THE_CALL = (
    "seconds",
    "seconds_wall",
    "source",
)  # stats that another computer, or another name, would give otherwise


class StoreError(Exception):
    """Nothing can be written into the index: the run ends, whatever video it was."""


class IndexStore(VideoCache):
    """The folder of an index as a model that fills it sees it. Nothing is ever removed, and what is stored depends on
    the video and the settings alone: seconds stand in the records."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index, self.limit = folder, None, 1 << 62

    def put_gazed(self, key: str, gazed: GazedVideo) -> None:
        stats = {name: value for name, value in gazed.stats.items() if name not in OF_THE_CALL}
        super().put_gazed(key, dataclasses.replace(gazed, stats=stats))

    def prune(self) -> None:
        return

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, InputError) as error:
            raise StoreError(str(error)) from error


def claim(out: Path, info: IndexInfo) -> None:
    """Makes the folder this index's. Raises InputError, naming what differs, where it is another one's."""
    path = out / INDEX_FILE
    if is_index(out):
        before = read_index(out)
        if before.folder != info.folder and Path(before.folder).is_dir():
            raise InputError(f"{out}: is the index of {before.folder}; choose another --out for {info.folder}")
        check_same(path, before.facts, info.facts)
        if before.folder == info.folder:
            return
    write_json(path, {"format": FORMAT, **dataclasses.asdict(info)})
    check_same(path, read_index(out).facts, info.facts)  # another process may have come first
