"""Checkpoints of a training run: safetensors and json, whole or not there, the newest few kept."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...common.errors import InputError, listed
from ...common.storage.files import output_folder, read_bytes, read_fields, write_json, write_text, writing
from ...common.storage.json_text import Fields, parse_object, to_json
from ...common.storage.weights import check_finite, check_weights, read_weights, shapes, write_weights
from ...gaze.autogaze.model import AutoGaze
from ..tasks.base import TrainableTask

logger = logging.getLogger(__name__)

STATE = "state.json"
HINTS = "hints.safetensors"
OPTIMIZER = "optimizer.safetensors"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Trained:
    """What a checkpoint is about. gaze, task, hints: None if not trained."""

    gaze: AutoGaze | None
    task: TrainableTask | None
    hints: nn.Module | None
    optimizer: torch.optim.Optimizer


def checkpoint_folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first: those that were finished."""
    return sorted(folder for folder in (run / "checkpoints").glob("step-*") if (folder / STATE).is_file())


def save_checkpoint(run: Path, step: int, trained: Trained, settings: Mapping[str, Any], keep: int) -> Path:
    """Writes `checkpoints/step-NNNNNNNN` beside its place, then moves it there in one go. Raises InputError where it
    cannot be written; then there is no half of it."""
    parent = output_folder(run / "checkpoints")
    folder, unfinished = parent / f"step-{step:08}", parent / f".step-{step:08}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with writing(folder):
            unfinished.mkdir()
            if trained.gaze is not None:
                trained.gaze.save_pretrained(unfinished / "gaze")
            if trained.task is not None:
                trained.task.save_pretrained(unfinished / "task", frozen=False)
            if trained.hints is not None:
                write_weights(unfinished / HINTS, trained.hints.state_dict())
            write_weights(unfinished / OPTIMIZER, optimizer_tensors(trained.optimizer))
            write_json(unfinished / STATE, {"step": step, "settings": dict(settings)})
            for file in unfinished.rglob("*"):
                _to_disk(file)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.replace(folder)
            _to_disk(parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_newest(run: Path, trained: Trained) -> tuple[int, dict[str, Any]]:
    """Puts the newest whole checkpoint of a run in place. -> its step and settings; 0 and none without any. Those that
    are passed over are told of in one line. Raises InputError where there are some and none is whole."""
    passed = []
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            stored = _read(folder, trained)
        except InputError as error:
            passed.append(f"{folder.name} ({str(error).replace(f'{folder}/', '').replace(f'{folder}: ', '')})")
            continue
        if passed:
            logger.warning("%s: going on from %s; passed over: %s", run, folder.name, listed(passed, 3, "; "))
        _put(stored, trained)
        return stored.step, stored.settings
    if passed:
        raise InputError(f"{run}: no checkpoint is whole: {listed(passed, 3, '; ')}; remove them to begin anew")
    return 0, {}


def load_from(path: Path, trained: Trained) -> int:
    """Puts the checkpoint `path`, or the newest whole one of the run `path`, in place. -> its step. Raises InputError
    where there is none or it does not fit."""
    if (path / STATE).is_file():
        stored = _read(path, trained)
        _put(stored, trained)
        return stored.step
    if not any((path / "checkpoints").glob("step-*")):
        raise InputError(f"{path}: neither a run with checkpoints nor a checkpoint (RUN/checkpoints/step-...)")
    return load_newest(path, trained)[0]


def checkpoint_settings(folder: Path) -> dict[str, Any]:
    """The settings of the training that a checkpoint was made in."""
    return read_fields(folder / STATE).get("settings", dict[str, Any])


@dataclass(frozen=True)
class _Stored:
    step: int
    settings: dict[str, Any]
    gaze: dict[str, torch.Tensor] | None
    task: dict[str, torch.Tensor] | None
    hints: dict[str, torch.Tensor] | None
    optimizer: dict[str, torch.Tensor]


def _read(folder: Path, trained: Trained) -> _Stored:
    """Everything, before anything is put in place. Raises InputError for what is missing, damaged or does not fit."""
    state = read_fields(folder / STATE)
    step = state.get("step", int)
    if folder.name != f"step-{step:08}":
        raise InputError(f"{folder}: {STATE} is of step {step}")
    gaze = None if trained.gaze is None else _fitting(folder / "gaze" / "model.safetensors", trained.gaze)
    hints = None if trained.hints is None else _fitting(folder / HINTS, trained.hints)
    task = None
    if trained.task is not None:
        if not (folder / "task").is_dir():
            raise InputError(f"{folder}: holds no reconstruction task, which this run trains")
        task = _finite(folder / "task" / "model.safetensors")
    optimizer = _finite(folder / OPTIMIZER)
    _check_optimizer(folder / OPTIMIZER, optimizer, trained.optimizer)
    return _Stored(step, state.get("settings", dict[str, Any]), gaze, task, hints, optimizer)


def _put(stored: _Stored, trained: Trained) -> None:
    if trained.gaze is not None and stored.gaze is not None:
        trained.gaze.load_state_dict(stored.gaze)
    if trained.task is not None and stored.task is not None:
        trained.task.load_weights(stored.task, "task")
    if trained.hints is not None and stored.hints is not None:
        trained.hints.load_state_dict(stored.hints)
    load_optimizer(trained.optimizer, stored.optimizer)


def _finite(path: Path) -> dict[str, torch.Tensor]:
    tensors = read_weights(path)
    check_finite(path, tensors)
    return tensors


def _fitting(path: Path, module: nn.Module) -> dict[str, torch.Tensor]:
    tensors = _finite(path)
    check_weights(path, shapes(module.state_dict()), shapes(tensors), against="the model that is trained")
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`number/name` -> tensor, numbers counting the parameters; what is in the groups comes from the settings."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for number, entries in states.items()
        for name, value in entries.items()
    }


def _check_optimizer(path: Path, tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Raises InputError where the state of a parameter is missing, or of another shape, or not one that it has."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {key.partition("/")[2] for key in tensors}
    learnt = {key.partition("/")[0] for key in tensors}  # those that never had a gradient have no state
    known = {str(number): parameter for number, parameter in enumerate(parameters)}
    expected: dict[str, Sequence[int]] = {}
    for number in learnt & known.keys():
        for name in names:
            own = tensors.get(f"{number}/{name}")
            scalar = own is not None and own.ndim == 0
            expected[f"{number}/{name}"] = () if scalar or name == "step" else tuple(known[number].shape)
    check_weights(path, expected, shapes(tensors), against="the parameters that are trained")
    kinds = {torch.optim.SGD: set(), torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"}}
    wanted = next((found for kind, found in kinds.items() if isinstance(optimizer, kind)), names)
    if names != wanted:
        raise InputError(f"{path}: holds {', '.join(sorted(names)) or 'nothing'}, expected {', '.join(sorted(wanted))}")


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class MetricsFile:
    """`metrics.jsonl`: one line per step. What a killed run wrote after its newest checkpoint goes when it resumes."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] < first_step] if path.exists() else []
        write_text(path, "".join(to_json(row) + "\n" for row in kept))
        with writing(path):
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with writing(self.path):
            self._file.write(to_json({"step": step, **values}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with writing(self.path):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a `metrics.jsonl`: what a kill has torn off ends them."""
    rows = []
    for line in read_bytes(path).split(b"\n")[:-1]:
        try:
            row = parse_object(line, path)
            Fields(row, path).get("step", int)
        except InputError:
            break
        rows.append(row)
    return rows


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
