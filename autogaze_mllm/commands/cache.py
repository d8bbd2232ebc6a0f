"""`autogaze-mllm cache`: list or clear what was kept of videos asked about before."""

from __future__ import annotations

import argparse
import datetime

from ..common.storage.json_text import to_json


def add(verbs: argparse._SubParsersAction) -> None:
    cache = verbs.add_parser("cache", help="list or clear what was kept of videos asked about before")
    cache.add_argument("action", choices=["ls", "clear"])
    cache.add_argument("--json", action="store_true", help="print json")
    cache.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..gaze.cache import VideoCache

    cache = VideoCache()
    if arguments.action == "clear":
        freed = cache.clear()
        print(to_json({"folder": str(cache.folder), "freed": freed}) if arguments.json else f"{_size(freed)} freed")
        return 0
    entries = cache.entries()
    if arguments.json:
        rows = [{"key": entry.key, "kind": entry.kind, "bytes": entry.bytes, "used": entry.used} for entry in entries]
        print(to_json({"folder": str(cache.folder), "entries": rows}))
        return 0
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        print(f"{entry.key[:12]}  {entry.kind:<6}  {_size(entry.bytes):>9}  used {used}")
    print(f"{len(entries)} entries, {_size(sum(entry.bytes for entry in entries))} in {cache.folder}")
    return 0


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
