"""Where a run begins: at step 0, at its own newest checkpoint, or at one that is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.storage.files import read_json, write_json
from ..data.labels import key_of
from .checkpoints import METRICS, Trained, checkpoint_folders, load_from, load_newest
from .identity import SETTINGS, check_facts

ORIGIN = "resumed_from"


def begin_run(run: Path, facts: dict[str, Any], trained: Trained, resume: Path | None, main: bool) -> int:
    """Puts the weights that the run goes on from in place and keeps `facts`, all that decides it, in its folder. -> the
    step to go on at.

    resume: a checkpoint, or a run, of which this run is the continuation; once it has checkpoints of its own, they
    count. main: whether this process writes. Raises InputError, with what differs, for a run that was begun as another
    one.
    """
    origin = None if resume is None else key_of(resume.resolve())
    if any((run / "checkpoints").glob("step-*")):
        if resume is not None and run.resolve() in (resume.resolve(), *resume.resolve().parents):
            _check_newest(run, resume)
            origin = None
        path = run / SETTINGS
        stored = read_json(path).get(ORIGIN) if path.is_file() else None
        facts = facts | {ORIGIN: stored if origin is None else origin}
        check_facts(run, facts)
        step, _ = load_newest(run, trained)
    elif resume is not None:
        step = load_from(resume, trained)
        check_facts(resume, facts, "to train its model on in another way, give --init CHECKPOINT/gaze")
        facts = facts | {ORIGIN: origin}
        if main:
            _copy_metrics(run, resume)
    else:
        facts, step = facts | {ORIGIN: None}, 0
    if main:
        write_json(run / SETTINGS, facts)
    return step


def _check_newest(run: Path, resume: Path) -> None:
    """Of a run's own checkpoints, only the newest can be gone on from in its folder."""
    newest = [folder.resolve() for folder in checkpoint_folders(run)[-1:]]
    if resume.resolve() not in (run.resolve(), *newest):
        raise InputError(f"{resume}: {run} has newer checkpoints than this one; give what begins there another --out")


def _copy_metrics(run: Path, resume: Path) -> None:
    """So that curves begin where the training did. Those of later steps are dropped when the file is opened."""
    for source in (resume, resume.parent.parent):
        if (source / METRICS).is_file() and not (run / METRICS).exists():
            shutil.copyfile(source / METRICS, run / METRICS)
