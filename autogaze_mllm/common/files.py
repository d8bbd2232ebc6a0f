"""Finding model files, locally or on the hub, and writing files so that a killed run leaves no half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from .errors import InputError, first_line


def find_file(source: str | Path, name: str, *, required: bool = True, **hub: Any) -> Path | None:
    """Path of file `name` of a local folder or of a hub repository (`hub`: revision, cache_dir, token, ...).

    None when the file is not required and absent. Raises InputError when it cannot be had.
    """
    folder = Path(source)
    if folder.is_dir():
        if (folder / name).is_file():
            return folder / name
        if required:
            raise InputError(f"{folder}: there is no {name} in this folder")
        return None
    try:
        return Path(hf_hub_download(str(source), name, **hub))
    except LocalEntryNotFoundError as error:  # offline, or not reachable; this one is also an EntryNotFoundError
        places = {part: hub[part] for part in ("cache_dir", "revision", "repo_type") if part in hub}
        cached = try_to_load_from_cache(str(source), name, **places)  # a path; None: unknown; else: known to be absent
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as json ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a json object")
    return data


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which takes its name only when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only the owner reads
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def output_folder(path: str | Path) -> Path:
    """Makes the folder; raises InputError when nothing can be written there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror or error})") from error
    return folder
