"""`gazing_labels.json`: what a video's clip should be gazed at, in the published format.

An object: path -> {"gazing_pos": [[...] per frame], "task_losses": [[...] per frame]}. Positions count on over the clip
(frame * N + index). Entries are found by the last three parts of a path, so that a folder may be moved
(docs/specification.md, "Labels").
"""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypedDict

import torch

from ...common.errors import InputError
from ...common.storage.files import read_json, write_text
from ...common.storage.json_text import Fields, to_json


class Label(TypedDict):
    gazing_pos: list[list[int]]
    task_losses: list[list[float]]


def key_of(path: str | Path) -> str:
    """The last three parts of a path."""
    return "/".join(PurePath(path).parts[-3:])


def write_labels(target: Path, labels: Mapping[str, Label], shard: int = 20_000) -> list[Path]:
    """Writes `target`, or `target` with -00001-of-00003 before its ending when there are more than `shard` entries."""
    items = sorted(labels.items())
    parts = max(math.ceil(len(items) / shard), 1)
    paths = []
    for number in range(parts):
        name = target.name if parts == 1 else f"{target.stem}-{number + 1:05}-of-{parts:05}{target.suffix}"
        path = target.with_name(name)
        write_text(path, to_json(dict(items[number * shard : (number + 1) * shard])))
        paths.append(path)
    return paths


def read_labels(files: str | Sequence[str]) -> dict[str, Label]:
    """Label files (several with commas or wildcards) -> entries by `key_of` their path; later files win."""
    result: dict[str, Label] = {}
    for name in label_files(files):
        for path, label in read_json(name).items():
            result[key_of(path)] = checked_label(label, f"{name}: {path}")
    return result


def label_files(files: str | Sequence[str]) -> list[Path]:
    """The files that are meant. Raises InputError where there is none."""
    result: list[Path] = []
    for pattern in files.split(",") if isinstance(files, str) else files:
        found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))
        if not found:
            raise InputError(f"{pattern}: no such label file")
        result += map(Path, found)
    return result


def checked_label(label: object, where: str) -> Label:
    """A label as files have it. Raises InputError, beginning with `where`, for anything else."""
    if not isinstance(label, dict) or not {"gazing_pos", "task_losses"} <= label.keys():
        raise InputError(f"{where}: a label needs gazing_pos and task_losses")
    stored = Fields(label, where)
    positions = stored.get("gazing_pos", list[list[int]])
    losses = stored.get("task_losses", list[list[float]])
    if any(position < 0 for frame in positions for position in frame):
        raise InputError(f"{where}: 'gazing_pos' holds a number below 0")
    if not positions or len(positions) != len(losses):
        raise InputError(f"{where}: {len(positions)} frames of positions, {len(losses)} of losses")
    for frame, (chosen, after) in enumerate(zip(positions, losses, strict=True)):
        if not chosen or len(chosen) != len(after):
            raise InputError(f"{where}: frame {frame} has {len(chosen)} positions and {len(after)} losses")
    return Label(gazing_pos=positions, task_losses=losses)


def collate_labels(labels: Sequence[Label]) -> dict[str, torch.Tensor]:
    """Labels of clips of equally many frames -> gazing_pos, if_padded_gazing, task_losses (B, n) and
    num_gazing_each_frame (T,).

    As published a frame has one entry more than its longest label, so every row ends in a padded one; positions are
    padded with -1, losses with the row's last of the frame. The labels are not changed.
    """
    frames = {len(label["gazing_pos"]) for label in labels}
    if len(frames) != 1:
        raise InputError(f"labels of {sorted(frames)} frames cannot be in one batch")
    positions, losses, counts = [], [], []
    for frame in range(frames.pop()):
        length = max(len(label["gazing_pos"][frame]) for label in labels) + 1
        rows = [label["gazing_pos"][frame] for label in labels]
        after = [label["task_losses"][frame] for label in labels]
        positions.append(torch.tensor([row + [-1] * (length - len(row)) for row in rows]))
        losses.append(torch.tensor([row + row[-1:] * (length - len(row)) for row in after], dtype=torch.float32))
        counts.append(length)
    gazing_pos = torch.cat(positions, dim=1)
    return {
        "gazing_pos": gazing_pos,
        "if_padded_gazing": gazing_pos == -1,
        "task_losses": torch.cat(losses, dim=1),
        "num_gazing_each_frame": torch.tensor(counts),
    }
