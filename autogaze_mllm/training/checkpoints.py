"""Checkpoints of a training run: safetensors and json, whole or not there, the newest few kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..common.errors import InputError
from ..common.files import output_folder, read_json, write_json
from ..common.weights import read_weights
from ..gaze.autogaze.model import AutoGaze
from .tasks.base import TrainableTask

STATE = "state.json"
HINTS = "hints.safetensors"


def checkpoint_folders(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(folder for folder in (run / "checkpoints").glob("step-*") if (folder / STATE).is_file())


def save_checkpoint(
    run: Path,
    step: int,
    gaze: AutoGaze,
    task: TrainableTask | None,
    hints: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes `checkpoints/step-NNNNNNNN` beside its place, then moves it there in one go.

    task, hints: None if not trained.
    """
    parent = output_folder(run / "checkpoints")
    folder, unfinished = parent / f"step-{step:08}", parent / f".step-{step:08}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    gaze.save_pretrained(unfinished / "gaze")
    if task is not None:
        task.save_pretrained(unfinished / "task")
    if hints is not None:
        save_file(hints.state_dict(), unfinished / HINTS)
    save_file(optimizer_tensors(optimizer), unfinished / "optimizer.safetensors")
    write_json(unfinished / STATE, {"step": step, "settings": dict(settings)})
    for file in unfinished.rglob("*"):
        _to_disk(file)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
    _to_disk(parent)
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(
    folder: Path,
    gaze: AutoGaze,
    task: TrainableTask | None,
    hints: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """Puts everything back in place; returns what `state.json` says."""
    state = read_json(folder / STATE)
    gaze.load_state_dict(read_weights(folder / "gaze" / "model.safetensors"))
    if task is not None:
        if not (folder / "task").is_dir():
            raise InputError(f"{folder}: holds no reconstruction task, which this run trains")
        task.load_weights(read_weights(folder / "task" / "model.safetensors"), str(folder / "task"))
    if hints is not None:
        hints.load_state_dict(read_weights(folder / HINTS))
    load_optimizer(optimizer, read_weights(folder / "optimizer.safetensors"))
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`number/name` -> tensor, numbers counting the parameters; what is in the groups comes from the settings."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for number, entries in states.items()
        for name, value in entries.items()
    }


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
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # the run was killed in the middle of this line
                    break
                if entry["step"] < first_step:
                    kept.append(line)
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
