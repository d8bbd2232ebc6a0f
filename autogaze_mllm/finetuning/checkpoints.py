"""Checkpoints of a fine-tuning: which is the newest whole one, and whether it belongs to the training that is to go on.

transformers and DeepSpeed write them file by file, so a killed process or a full disk leaves some of the files.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import safe_globals

from ..common.compute import distributed
from ..common.errors import InputError, first_line, listed
from ..common.storage.files import read_fields, write_json
from ..common.storage.hashing import content_hash, fingerprint
from ..common.storage.json_diff import check_same
from ..common.storage.weights import open_weights
from ..gaze.selectors.base import as_selector
from ..mllm.model import GazedModel
from ..mllm.native.checkpoint import find_weights
from ..mllm.saving import SETTINGS_FILE
from ..mllm.trained_parts import ADAPTER, ADAPTER_WEIGHTS
from .config import FinetuneConfig

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
STATE = "trainer_state.json"  # the file that is written last
# What may be another when a training goes on; data and media are known by their content.
FREE = {"output", "resume", "progress", "data", "media_root", "eval_data", "eval_steps", "eval_benchmark", "eval_limit"}
FREE |= {"save_steps", "save_total_limit", "log_steps", "report", "workers", "cache", "index", "cpu"}
FREE |= {"gradient_checkpointing"}


def latest_checkpoint(config: FinetuneConfig) -> str | None:
    """Where to go on from: the newest whole checkpoint, or the named one. Those that are passed over are told of.

    Raises InputError when a named one is not whole, when none is, or when a training would overwrite one.
    """
    folder = Path(config.output)
    found = sorted((path for path in folder.glob("checkpoint-*") if _step(path) >= 0), key=_step, reverse=True)
    if config.resume is None:
        if any((path / STATE).is_file() for path in found):
            raise InputError(
                f"{folder}: holds {found[0].name} of another training: add --resume, or choose another folder"
            )
        return None
    if config.resume != "auto":
        if not (Path(config.resume) / STATE).is_file():
            raise InputError(f"{config.resume}: not a checkpoint (it has no {STATE})")
        check_whole(Path(config.resume))
        return config.resume
    passed = []
    for path in found:
        try:
            check_whole(path)
        except InputError as error:
            passed.append(f"{path.name} ({str(error).replace(f'{path}/', '').replace(f'{path}: ', '')})")
            continue
        if passed and distributed.is_first():
            logger.warning("%s: going on from %s; passed over: %s", folder, path.name, listed(passed, 3, "; "))
        return str(path)
    if passed and any((path / STATE).is_file() for path in found):
        raise InputError(f"{folder}: no checkpoint is whole: {listed(passed, 3, '; ')}; remove them to begin anew")
    return None


def _step(path: Path) -> int:
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() and len(number) < 19 else -1


def check_whole(folder: Path) -> None:
    """Raises InputError, naming the file, for a checkpoint that a training could not go on from as it was."""
    if not (folder / STATE).is_file():
        raise InputError(f"{folder}: has no {STATE}")
    state = read_fields(folder / STATE)
    step = state.get("global_step", int)
    for name, kind in (("epoch", float | None), ("log_history", list[dict[str, Any]]), ("max_steps", int)):
        state.get(name, kind)
    if _step(folder) not in (-1, step):
        raise InputError(f"{folder / STATE}: is of step {step}")
    tuned = read_fields(folder / SETTINGS_FILE).object("tuned")
    for part in tuned.get("parts", list[str]):
        find_weights(folder, part)  # opens every file, which tells whether it is complete
    if tuned.get("adapter", bool):
        with open_weights(folder / ADAPTER / ADAPTER_WEIGHTS):
            read_fields(folder / ADAPTER / "adapter_config.json")
    if (folder / "latest").is_file():  # DeepSpeed's, which has a folder of files of its own
        if not any((folder / (folder / "latest").read_text(errors="replace").strip()).glob("*.pt")):
            raise InputError(f"{folder}: lacks the files that 'latest' names")
    elif not any(path.is_dir() for path in folder.glob("optimizer*")):  # FSDP's
        _check_torch(folder / "optimizer.pt")
    _check_torch(folder / "scheduler.pt", required=not (folder / "latest").is_file())
    states = sorted(folder.glob("rng_state*.pth"))
    if not states:
        raise InputError(f"{folder}: has no rng_state.pth")
    for path in states:
        _check_torch(path)


def _check_torch(path: Path, required: bool = True) -> None:
    """Raises InputError where a file of torch.save is missing or cut off. Nothing in it is run or copied."""
    if not path.is_file():
        if required:
            raise InputError(f"{path.parent}: has no {path.name}")
        return
    try:
        with safe_globals():
            torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # damaged files come as errors of many types
        raise InputError(f"{path}: damaged, or not optimiser state ({first_line(error)[:120]})") from error


def facts_of(model: GazedModel, config: FinetuneConfig) -> dict[str, Any]:
    """All that decides a training's result, as json values; taken before anything is trained."""
    tower = model.tower
    return {
        **{name: value for name, value in config.to_dict().items() if name not in FREE},
        "processes": distributed.count(),
        "data_files": [content_hash(file) for file in config.data],
        "base": fingerprint(dict(model.family.base.named_parameters())),
        "gaze": as_selector(model.gaze).identity(),
        "settings": model.settings.to_dict(),
        "tower": [[list(side) for side in tower.grid.scales], tower.attn_type, tower.frame_independent],
    }


def identify(model: GazedModel, config: FinetuneConfig, resume: str | None) -> None:
    """Keeps in the output folder what a training is. Raises InputError, with the differences, where it is to go on from
    a checkpoint of another one. Everyone must call it."""
    facts = facts_of(model, config)
    begun = Path(config.output) if resume is None else Path(resume).parent
    if resume is not None and (begun / RUN_FILE).is_file():
        stored = read_fields(begun / RUN_FILE).values
        check_same(
            begun, {name: stored[name] for name in facts if name in stored}, {n: facts[n] for n in facts if n in stored}
        )
    distributed.wait()
    if distributed.rank() == 0:
        write_json(Path(config.output) / RUN_FILE, facts)
