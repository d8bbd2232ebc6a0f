"""The video files of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..common.errors import InputError
from ..common.storage.paths import shown_name

VIDEO_ENDINGS = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts", ".m4v", ".mpg", ".mpeg", ".gif"}
VIDEO_ENDINGS |= {".m2ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv"}


def videos_below(folder: str | Path) -> list[str]:
    """Names of all video files in a folder and the folders in it, relative to it, with slashes, sorted. Hidden ones are
    left out, and folders that are links. Raises InputError for what is no folder, or cannot be listed."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{shown_name(str(folder))}: no such folder")

    def refuse(error: OSError) -> None:
        raise InputError(f"{shown_name(str(error.filename))}: cannot be listed ({error.strerror})") from error

    found = []
    for parent, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name).relative_to(root).as_posix()
            for name in files
            if Path(name).suffix.lower() in VIDEO_ENDINGS and not name.startswith(".")
        ]
    return sorted(found)
