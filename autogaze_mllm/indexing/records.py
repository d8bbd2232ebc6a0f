"""What is known of every video of an index: one json line each, in `index.jsonl`.

While processes are at work, each appends to a file of its own, `index-RANK.jsonl`; the last one to end puts them
together, one line a video, sorted by name. So a killed run loses one line at most, and no two processes write one file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.storage.files import write_text
from ..common.storage.json_lines import JsonLines, read_lines
from ..common.storage.json_text import to_json
from ..common.storage.locks import run_lock, wait_lock
from ..common.storage.paths import shown_name
from .attempts import MOST

RECORDS = "index.jsonl"
PARTS = "index-*.jsonl"


@dataclass(frozen=True)
class Record:
    """path: of the video, below the folder of videos. bytes, modified: the file's size and time of change (nanoseconds)
    when it was indexed. content: hash of its bytes. gazed, tokens: files of the index. settings: of the video. frames:
    that were looked at; frames_lost: that could not be decoded. seconds: by stage, and by the clock (wall).

    error: why there is nothing of this video.
    """

    path: str
    bytes: int
    modified: int
    content: str = ""
    gazed: str | None = None
    tokens: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    frames: int = 0
    frames_lost: int = 0
    patches: int = 0
    patches_total: int = 0
    visual_tokens: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class RecordLog(JsonLines):
    """Appends records to one file, which is this process's alone."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(folder / f"index-{rank:05}.jsonl", _lock(rank), "then it goes on where it stopped")

    def add(self, record: Record) -> None:
        self.append(record.to_dict())


def read_records(folder: Path) -> dict[str, Record]:
    """The latest record of each video."""
    found: dict[str, Record] = {}
    for path in [folder / RECORDS, *sorted(folder.glob(PARTS))]:
        for stored in read_lines(path) if path.is_file() else ():
            for name, kind in (("path", str), ("bytes", int), ("modified", int)):
                stored.get(name, kind)
            record = Record(**stored.known(Record))
            found[record.path] = record
    return found


def put_together(folder: Path) -> None:
    """One file of all parts, unless a process is still at work here: it does so at its own end."""
    with ExitStack() as stack:
        stack.enter_context(wait_lock(folder / ".merge.lock"))
        parts = sorted(folder.glob(PARTS))
        try:
            for part in parts:
                stack.enter_context(run_lock(folder, part.stem.removeprefix("index")))
        except InputError:
            return
        if parts:
            write_records(folder / RECORDS, read_records(folder))
        for part in parts:
            part.unlink(missing_ok=True)


def write_records(path: Path, records: Mapping[str, Record]) -> None:
    lines = [to_json(records[name].to_dict()) for name in sorted(records)]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _lock(rank: int) -> str:
    return f"-{rank:05}"


def seen(path: Path, video: str) -> Record:
    """A record of the file as it is now, with nothing in it yet."""
    try:
        facts = path.stat()
    except OSError as error:
        return Record(video, 0, 0, error=f"{shown_name(str(path))}: {error.strerror}")
    return Record(video, facts.st_size, facts.st_mtime_ns)


def set_aside(path: Path, how: str = "was killed") -> str:
    """Why a video is not tried again. how: the worker ended."""
    cause = f"its worker {how} in each of {MOST} tries, most often for want of memory"
    return f"{shown_name(str(path))}: set aside, because {cause}; --retry-failed tries again"
