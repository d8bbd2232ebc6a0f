"""One process at a time writes a run's folder; a second one is refused and told of the first.

The lock is the system's own: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from .files import output_folder

logger = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds for helpers of a process that is gone already: they hold its lock until they notice
_UNLOCKED = "{}: cannot be locked here, so see to it that one process at a time uses it ({})"
_held: dict[tuple[int, str], int] = {}  # how often this process has entered each lock
_guard = threading.Lock()


@contextmanager
def run_lock(folder: Path, part: str = "", world: int = 1) -> Iterator[None]:
    """Holds the folder for this process, which may enter it several times. part: of the folder, where `world` processes
    of one run each write their own; processes of a run of another number share its work out differently. Raises
    InputError, naming the process that has it, where another one does."""
    from filelock import FileLock

    path = output_folder(folder).resolve() / f".run{part}.lock"
    key, owner = (os.getpid(), str(path)), path.with_suffix(".owner")
    with _guard:
        first = key not in _held
        lock = FileLock(path) if first else None
        if lock is not None:
            _acquire(lock, folder, owner)
            with suppress(OSError):  # only words for others depend on it
                owner.write_text(json.dumps(_myself(world)), encoding="utf-8")
            if part:
                _check_others(path, folder, owner, lock, world)
        _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        with _guard:
            _held[key] -= 1
            if not _held[key]:
                del _held[key]
        if lock is not None:
            with suppress(OSError):
                owner.unlink(missing_ok=True)
            lock.release()


@contextmanager
def wait_lock(path: Path) -> Iterator[None]:
    """Waits until no other process is inside; where files cannot be locked, a warning, and no waiting."""
    from filelock import FileLock

    lock = FileLock(path)
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        logger.warning("%s", _UNLOCKED.format(path.parent, error))
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: object, folder: Path, owner: Path) -> None:
    from filelock import BaseFileLock, Timeout

    assert isinstance(lock, BaseFileLock)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout as error:
            held = _read(owner)
            if not _is_gone(held) or time.monotonic() > deadline:
                raise _at_work(folder, held) from error
        except (NotImplementedError, OSError) as error:
            logger.warning("%s", _UNLOCKED.format(folder, error))
            return
        time.sleep(0.2)


def _check_others(path: Path, folder: Path, owner: Path, lock: object, world: int) -> None:
    """Raises InputError, and lets go of the lock, where a process of another run holds another part."""
    from filelock import BaseFileLock, FileLock, Timeout

    assert isinstance(lock, BaseFileLock)
    for other in path.parent.glob(".run-*.owner"):
        held = _read(other)
        if other == owner or held.get("of", world) == world or _is_gone(held):
            continue  # of this run, or left behind: those of this run are not even tried, or they would be refused
        try:
            with FileLock(other.with_suffix(".lock"), timeout=0):
                continue  # nobody's any more
        except Timeout as error:
            owner.unlink(missing_ok=True)
            lock.release()
            raise _at_work(folder, held) from error
        except (NotImplementedError, OSError):
            return


def _at_work(folder: Path, held: dict[str, object]) -> InputError:
    return InputError(
        f"{folder}: another process{_in_words(held)} is at work here; wait for it, or give this run another folder"
    )


def _myself(world: int) -> dict[str, object]:
    now = datetime.datetime.now().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "of": world}


def _read(owner: Path) -> dict[str, object]:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_words(held: dict[str, object]) -> str:
    return f" ({held['pid']} on {held.get('host')}, since {held.get('since')})" if "pid" in held else ""


def _is_gone(held: dict[str, object]) -> bool:
    """Whether the process that took the lock was on this machine and is no longer there."""
    pid = held.get("pid")
    if held.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
