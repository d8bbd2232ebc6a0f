"""Models of the hub as they are at a revision: a commit, tag or branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

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
        folder = snapshot_download(name, revision=revision, allow_patterns=[*SETTINGS, *SAFE])
        if not any(Path(folder).rglob(SAFE[0])):
            folder = snapshot_download(name, revision=revision, allow_patterns=[*SETTINGS, *PICKLED])
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{name} at revision {revision!r}: cannot be had ({first_line(error)})") from error
    return folder


def check_named(revisions: Mapping[str, str], names: Sequence[str]) -> None:
    """Raises InputError for a revision of something that is none of the models of a call."""
    if unknown := revisions.keys() - set(names):
        raise InputError(f"--revision: {min(unknown)!r} is none of the models: {', '.join(names)}")
