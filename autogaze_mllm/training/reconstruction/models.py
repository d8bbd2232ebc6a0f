"""The selectors and models that are measured, and what identifies them: their content, not what they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ...common.drawing.labels import told_apart
from ...common.storage.hashing import fingerprint
from ...common.storage.pinned import FILES, check_named, commit_of, pinned
from ...gaze.autogaze.model import AutoGaze
from ...gaze.autogaze.pretrained import BUNDLED, BUNDLED_FOLDER
from ...gaze.selector_registry import NAMED, load_selector
from ...gaze.selectors.base import AnySelector, as_selector
from ...gaze.selectors.baselines import RandomSelector
from ..tasks.base import ReconstructionTask
from ..tasks.registry import load_task
from .selectors import default_task

BUILT_IN = (*NAMED, "mosaic")  # what has no files


@dataclass(frozen=True)
class Contender:
    """A selector with the task that measures it. label: in tables; metadata: what is written of it."""

    label: str
    selector: AnySelector
    task: ReconstructionTask
    metadata: dict[str, Any]

    @property
    def file(self) -> str:
        """The label as part of a file's name."""
        return self.label.replace("/", "-")


@dataclass(frozen=True)
class Models:
    """contenders, and what is told of the task's model (`mosaic` has none)."""

    contenders: list[Contender]
    task: dict[str, Any]

    def identities(self) -> dict[str, Any]:
        """What decides results, by label: content, grids and values."""
        return {
            one.label: {"selector": as_selector(one.selector).identity(), "task": _task_identity(one.task)}
            for one in self.contenders
        }


def load_models(
    gaze: Sequence[str], task: str, device: torch.device, *, seed: int = 0, revisions: Mapping[str, str] | None = None
) -> Models:
    """gaze: names of selectors and ids or folders of gaze models. task: `mosaic`, or the id or folder of a VideoMAE.
    revisions: of models on the hub, by their ids. Raises InputError for a revision of something else."""
    revisions = revisions or {}
    asked = list(dict.fromkeys(gaze))
    check_named(revisions, [*asked, task])
    sources = {name: pinned(name, revisions.get(name)) for name in [*asked, task]}
    selectors = {name: _selector(name, sources[name], seed, device) for name in asked}
    shared: ReconstructionTask | None = None
    if task != "mosaic":
        grids = [selector.grid for selector in selectors.values() if isinstance(selector, AutoGaze)]
        shared = load_task(sources[task], grids[0] if grids else None, device=device)  # others work on any grid
    contenders = []
    for name, label in _labels(asked).items():
        selector = selectors[name]
        measure = shared or default_task(selector)
        if isinstance(selector, AutoGaze):
            selector.grid.check_same(measure.grid, name, task)
        metadata = {"source": name, **_files(name, sources[name], revisions.get(name)), **_settings_of(selector)}
        contenders.append(Contender(label, selector, measure, metadata))
    metadata = {
        "source": task,
        **_files(task, sources[task], revisions.get(task)),
        **_task_identity(contenders[0].task),
    }
    return Models(contenders, metadata)


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Name -> what it is called in tables. What a run of `train-gaze` left, RUN/gaze, is called after the run."""
    found = told_apart(names)
    for name, label in found.items():
        if label == "gaze" and Path(name, "..", "settings.json").is_file():
            found[name] = "/".join(Path(name).absolute().parts[-2:])
    return found


def _selector(name: str, source: str, seed: int, device: torch.device) -> AnySelector:
    if name == RandomSelector.name:
        return RandomSelector(seed)
    return load_selector(source, device=device)


def _settings_of(selector: AnySelector) -> dict[str, Any]:
    identity = as_selector(selector).identity() or {}
    return {
        "grid": str(as_selector(selector).grid),
        **{key: identity[key] for key in ("weights", "seed") if key in identity},
    }


def _task_identity(task: ReconstructionTask) -> dict[str, Any]:
    known = {"name": task.name, "grid": str(task.grid)}
    processor = getattr(task, "processor", None)
    if processor is not None:
        known["processor"] = processor.to_dict()
    return {**known, "weights": fingerprint(task.state_dict())} if isinstance(task, torch.nn.Module) else known


def _files(name: str, source: str, revision: str | None) -> dict[str, Any]:
    """revision: the one asked for; commit: what it stands for, where the hub's cache says so; sha256: of each file."""
    if name in BUILT_IN:
        return {}
    folder = BUNDLED_FOLDER if name == BUNDLED else Path(source)
    if not folder.is_dir():
        found = _cached(name)
        if found is None:
            return {}
        folder = found
    metadata: dict[str, Any] = {} if revision is None else {"revision": revision}
    if (commit := commit_of(folder)) is not None:
        metadata["commit"] = commit
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    return {**metadata, "sha256": {path.name: _sha256(path) for path in files}}


def _cached(name: str) -> Path | None:
    """The folder of the hub's cache that the model was read from; None where there is none."""
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
