"""Finding model files, locally or on the hub, and writing files so that a killed run leaves no half of one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from ..errors import InputError, first_line
from .json_text import Fields, parse_object, to_json
from .paths import is_file, is_folder, shown_name

# What huggingface_hub is told of a repository.
HUB = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "force_download")


def find_file(source: str | Path, name: str, *, required: bool = True, **hub: Any) -> Path | None:
    """Path of file `name` of a local folder or of a hub repository (`hub`: revision, cache_dir, token, ...).

    None when the file is not required and absent. Raises InputError when it cannot be had, and for an argument that the
    hub does not have, also where the folder makes it unnecessary.
    """
    check_arguments(hub, (), str(source))
    folder, inside = Path(source), hub.get("subfolder") or ""
    if is_folder(folder):
        folder /= inside
        if is_file(folder / name):
            return folder / name
        if required:
            raise InputError(f"{folder}: there is no {name} in this folder")
        return None
    if "/" not in str(source):  # a hub that does not answer is asked for a minute
        raise InputError(f"{source}: no such folder, and not the name of a hub repository, which is OWNER/NAME")
    try:
        return Path(hf_hub_download(str(source), name, **hub))
    except LocalEntryNotFoundError as error:  # offline, or not reachable; this one is also an EntryNotFoundError
        places = {part: hub[part] for part in ("cache_dir", "revision") if part in hub}
        # A path; None: unknown; anything else: known to be absent.
        cached = try_to_load_from_cache(str(source), f"{inside}/{name}".lstrip("/"), **places)
        if not required and cached is not None and not isinstance(cached, str):
            return None
        raise InputError(
            f"{source}: not a folder, and {name} could not be fetched from the hub (no connection?)"
        ) from error
    except EntryNotFoundError as error:
        if required:
            raise InputError(f"{source}: the repository has no {name}") from error
        return None
    except HFValidationError as error:
        raise InputError(f"{source}: no such folder, and not the name of a hub repository") from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"{source}: not a folder, and the hub does not give {name}: {first_line(error)}") from error


def check_arguments(hub: Mapping[str, Any], others: Sequence[str], where: str) -> None:
    """Raises InputError for keyword arguments that are none of the hub's: a setting that is not known would have no
    effect. others: the caller's own, for the error, which begins with `where`."""
    unknown = [name for name in hub if name not in HUB]
    if unknown:
        known = ", ".join((*others, *HUB))
        raise InputError(f"{where}: unknown argument {', '.join(map(repr, unknown))} (known: {known})")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a json file holds. Raises InputError, naming the file, for anything else."""
    return parse_object(read_bytes(path), path)


def read_fields(path: Path) -> Fields:
    """The same, for values of known keys and types."""
    return Fields(read_json(path), path)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{shown_name(str(path))}: cannot be read ({error.strerror or error})") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which takes its name only when the block ends without an error. Raises
    InputError where nothing can be written, as on a full disk; then there is no half of a file either."""
    with writing(path):
        # Absolute, so that nobody takes the name for an address ("12:30.mkv") or an option.
        temporary = path.parent.absolute() / f".{path.name[:40]}.{uuid.uuid4().hex[:8]}"
        mode = _create(temporary)
        try:
            yield temporary
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder`, which takes its name only when the block ends without an error; until then that
    one is not there, or empty, and stays so. For what other libraries write, see `written_by_others`."""
    whole = folder.absolute()
    unfinished = output_folder(whole.parent) / f".{whole.name[:40]}.{uuid.uuid4().hex[:8]}"
    try:
        with writing(folder):
            unfinished.mkdir()
            with written_by_others(unfinished, folder):
                yield unfinished
            unfinished.replace(whole)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _create(path: Path) -> int:
    """Makes an empty file with the permissions of any new one: the umask applies here, and is changed for no other
    thread. -> these permissions."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


@contextmanager
def written_by_others(folder: Path, name: Path | None = None) -> Iterator[None]:
    """Inside, another library writes weights into the folder. What keeps it from that is an InputError that names it
    (or `name`); and the files are for whom the umask lets, where safetensors makes them its owner's alone."""
    with writing(name or folder):
        yield
        trial = folder / f".{uuid.uuid4().hex[:8]}"
        mode = _create(trial)
        trial.unlink()
        for path in folder.glob("*.safetensors"):
            path.chmod(mode)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what keeps `path` from being written is an InputError that names it."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_full(error):
            raise
        raise InputError(f"{shown_name(str(path))}: cannot be written ({why_not(error)})") from error


def why_not(error: BaseException) -> str:
    """Why something could not be written, and what helps."""
    why = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    why = "no more can be written" if isinstance(error, RuntimeError) and is_full(error) else why
    return f"{why}; make room, then run the same again" if is_full(error) else why


def is_full(error: BaseException) -> bool:
    """Whether a disk, or what may be used of it, is full. Libraries say so in errors of their own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    said = str(error)
    known = ["No space left", "StorageFull", "FileTooLarge", "File too large", "QuotaExceeded"]
    known += ["file write failed", "unexpected pos ", "iostream error"]  # of torch.save
    return isinstance(error, (SafetensorError, RuntimeError)) and any(part in said for part in known)


def write_text(path: Path, text: str) -> None:
    """Replaces the file only when the new one is complete. Halves of characters are written as their escapes."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, to_json(data, indent=2, sort_keys=True) + "\n")


def output_folder(path: str | Path) -> Path:
    """Makes the folder; raises InputError when nothing can be written there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{shown_name(str(folder))}: cannot write here ({error.strerror or error})") from error
    return folder
