"""Data sets from the hub: fetched once at one commit, unpacked, and kept in the cache folder."""

from __future__ import annotations

import logging
import re
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import InputError, first_line
from ...common.storage.files import output_folder
from ...common.storage.hashing import default_folder
from ...common.storage.locks import wait_lock

if TYPE_CHECKING:
    from ..benchmarks import Benchmark

logger = logging.getLogger(__name__)

READY = ".ready"  # written when everything is fetched and unpacked
_COMMIT = re.compile("[0-9a-f]{40}")
_TAR = re.compile(r"(.*\.tar(?:\.gz)?)(?:\.part.*)?")


def fetch(benchmark: type[Benchmark], split: str, revision: str | None) -> tuple[Path, str]:
    """-> (the folder with the data set's files and the contents of its archives, its commit).

    revision: branch, tag or commit; default: the benchmark's own. A commit that was fetched before needs no connection.
    Raises InputError when the hub cannot be reached or the disk has too little room.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository = benchmark(Path(), split).repository
    wanted = revision or benchmark.revision
    if _COMMIT.fullmatch(wanted) and (_place(repository, wanted) / READY).exists():
        return _place(repository, wanted), wanted
    try:
        info = HfApi().dataset_info(repository, revision=wanted, files_metadata=True)
        commit = info.sha or wanted
        folder = output_folder(_place(repository, commit))
        with wait_lock(folder / ".lock"):  # processes of one run come at the same time
            if not (folder / READY).exists():
                _check_room(folder, repository, sum(file.size or 0 for file in info.siblings or ()))
                snapshot_download(repository, repo_type="dataset", revision=commit, local_dir=folder)
                unpack(folder)
                (folder / READY).touch()
    except InputError:
        raise
    except Exception as error:  # the hub's own, the archives', and those of whichever http library the hub uses
        raise InputError(
            f"{repository} (revision {wanted}) could not be fetched from the hub: {first_line(error)}; "
            "with the data in a folder, give --data FOLDER"
        ) from error
    return folder, commit


def _place(repository: str, commit: str) -> Path:
    return default_folder() / "data" / f"{repository.replace('/', '--')}@{commit}"


def _check_room(folder: Path, repository: str, size: int) -> None:
    """Archives and what is in them take about the same; both are there until the last one is unpacked."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = max(2 * size - there, 0), shutil.disk_usage(folder).free
    logger.info("%s: %.1f GB to fetch, %.1f GB of room needed", repository, size / 1e9, needed / 1e9)
    if needed > free:
        raise InputError(
            f"{folder}: {repository} has {size / 1e9:.1f} GB and needs {needed / 1e9:.1f} GB of room with its archives "
            f"unpacked, {free / 1e9:.1f} GB are free; set XDG_CACHE_HOME to a larger disk, or give --data FOLDER"
        )


def unpack(folder: Path, *, beside: bool = False) -> None:
    """Unpacks all zip and tar files, also tar files in parts, into the folder itself, or each beside where it lies."""
    for path in sorted(folder.rglob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.parent if beside else folder)
    for parts in _tar_files(folder):
        with tarfile.open(fileobj=_Joined(parts), mode="r|*") as archive:  # type: ignore[call-overload]
            archive.extractall(parts[0].parent if beside else folder, filter="data")


def _tar_files(folder: Path) -> list[list[Path]]:
    """Each tar file as its parts in order: x.tar, or x.tar.part.aa, x.tar.part.ab, ..."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.tar*")):
        named = _TAR.fullmatch(str(path))
        if named and path.is_file():
            groups.setdefault(named[1], []).append(path)
    return list(groups.values())


class _Joined:
    """Several files read as one, as far as tarfile reads streams."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._waiting = iter(paths)
        self._file = next(self._waiting).open("rb")

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        while len(data) < size:
            path = next(self._waiting, None)
            if path is None:
                break
            self._file.close()
            self._file = path.open("rb")
            data += self._file.read(size - len(data))
        return data
