"""What decides a run, kept in its folder, so that another command is told of and refused.

Notable design decisions:
- everything that changes a number of the training is in it, by content where it can be: settings, videos, labels, the
  weights that were begun from, the task and its weights, and the budgets of the gaze model;
- what a later version adds is not held against a run that was begun before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.storage.files import read_json
from ...common.storage.json_diff import check_same
from ...gaze.autogaze.model import AutoGaze
from ..config import TrainingConfig
from ..data.clips import ClipConfig, ClipSource
from ..data.labels import key_of
from ..tasks.base import ReconstructionTask
from .checkpoints import checkpoint_settings

SETTINGS = "settings.json"
FREE = {"keep", "save_every", "val_every", "val_clips", "tracker", "micro_batch"}  # may be others when a run goes on


def run_facts(
    settings: TrainingConfig,
    train: ClipSource,
    val: ClipSource | None,
    gaze: AutoGaze,
    task: ReconstructionTask,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """As json values. given: what else decides the result."""
    config = getattr(getattr(task, "model", None), "config", None)
    processor = getattr(task, "processor", None)
    facts = settings.to_dict() | {
        "clips": vars(train.settings),
        "random_clips": train.random,
        "decoded": train.decoded is not None,  # kept frames are smaller ones
        "videos": len(train),
        "video_files": _files(train),
        "val_files": None if val is None else _files(val),
        "gaze": gaze.config.to_dict(),
        "processor": gaze.processor.to_dict(),
        "task": {
            "name": task.name,
            "config": config.to_dict() if config is not None else None,
            "sample_rate": getattr(task, "sample_rate", None),
        },
        "task_processor": processor.to_dict() if processor is not None else None,
        **given,
    }
    return _as_json(facts)


def check_facts(where: Path, facts: Mapping[str, Any], *advice: str) -> None:
    """where: a run's folder, or one of its checkpoints, which alone holds the settings of the training. Raises
    InputError with all that is another now. advice: what to do then."""
    run = where if (where / SETTINGS).is_file() else where.parent.parent
    path = run / SETTINGS
    stored = read_json(path) if path.is_file() else checkpoint_settings(where)
    defaults = _as_json(TrainingConfig().to_dict() | {"clips": vars(ClipConfig())})
    stored = _filled(stored, defaults) if path.is_file() else stored
    known = {name for name in facts if name in stored and name not in FREE}  # some came after a run was begun
    before, now = ({name: one[name] for name in known} for one in (stored, facts))
    check_same(where, before, now, *advice)


def _files(source: ClipSource) -> str:
    """Of their names and sizes."""
    names = hashlib.blake2b(digest_size=16)
    for video in source.paths:
        names.update(f"{key_of(video)} {video.stat().st_size if video.is_file() else -1}\n".encode(errors="replace"))
    return names.hexdigest()


def _filled(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings that came after a run was begun have their defaults in it."""
    filled = {**defaults, **stored}
    return filled | {
        name: _filled(stored[name], value)
        for name, value in defaults.items()
        if isinstance(value, dict) and isinstance(stored.get(name), dict)
    }


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as the lists that json gives back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value

    return plain(values)
