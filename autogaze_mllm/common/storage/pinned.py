"""Models of the hub as they are at a revision: a commit, tag or branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from ..errors import InputError, first_line

SETTINGS = ("*.json", "*.yaml", "*.jinja", "*.txt", "*.model")  # of models, processors and tokenizers
SAFE, PICKLED = ("*.safetensors",), ("*.pt", "*.bin")  # many repositories have the weights in both forms
FILES = (*SETTINGS, *SAFE, *PICKLED)


def pinned(name: str, revision: str | None) -> str:
    """A folder with the files of a model as they are at a revision; without one the name as it is."""
    if revision is None:
        return name
    if "/" not in name or Path(name).is_dir():
        raise InputError(f"--revision: {name} is no model of the hub, so it has no revisions")
    try:
        folder = _snapshot(name, revision, SAFE)
        return folder if any(Path(folder).rglob(SAFE[0])) else _snapshot(name, revision, PICKLED)
    except Exception as error:  # the hub's own, and those of whichever http library it uses
        raise InputError(f"{name} at revision {revision!r}: cannot be had ({first_line(error)})") from error


def _snapshot(name: str, revision: str, weights: Sequence[str]) -> str:
    """What is fetched already does without the hub, in every version of huggingface_hub."""
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": [*SETTINGS, *weights]}
    try:
        return snapshot_download(name, **wanted)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except Exception as error:
        try:
            return snapshot_download(name, **wanted, local_files_only=True)
        except Exception:
            raise error from None


def commit_of(folder: str | Path) -> str | None:
    """Of a folder in the cache of the hub; None of another."""
    path = Path(folder)
    return path.name if path.parent.name == "snapshots" else None


def check_named(revisions: Mapping[str, str], names: Sequence[str]) -> None:
    """Raises InputError for a revision of something that is none of the models of a call."""
    if unknown := revisions.keys() - set(names):
        raise InputError(f"--revision: {min(unknown)!r} is none of the models: {', '.join(names)}")
