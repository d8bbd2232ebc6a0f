"""A run: a folder with its settings and its answers, which another process may go on with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.distributed import Shard
from ..common.errors import InputError
from ..common.files import output_folder, read_json, write_json
from ..common.json_diff import differences
from .answers import PATTERN, Answer, read_answers

RUN_FILE = "run.json"
FORMAT = 1
PATIENCE = 600.0  # seconds to wait for the first process to write RUN_FILE


@dataclass(frozen=True)
class Run:
    """settings: all that decides the answers; a run is only ever continued with the same. questions: ids, in the order
    of the data. environment: versions and devices, recorded but not compared."""

    folder: Path
    settings: dict[str, Any]
    questions: Sequence[str]
    environment: dict[str, Any]

    @classmethod
    def open(
        cls,
        folder: str | Path,
        settings: dict[str, Any],
        questions: Sequence[str],
        environment: dict[str, Any],
        *,
        resume: bool,
        shard: Shard,
    ) -> Run:
        """Begins a run, or goes on with one. Raises InputError when the folder holds another run, or one that is not to
        be resumed. The first process writes the settings, the others wait for them."""
        target = output_folder(folder)
        path = target / RUN_FILE
        if shard.rank == 0:
            if path.exists():
                check_same(path, read_run(target).settings, settings)
                if not resume and any(target.glob(PATTERN)):
                    raise InputError(f"{target}: holds a run already; go on with --resume, or choose another --out")
            elif any(target.glob(PATTERN)):
                raise InputError(f"{target}: holds answers but no {RUN_FILE}; choose another --out")
            stored = {"settings": settings, "questions": list(questions), "environment": environment}
            write_json(path, {"format": FORMAT, **stored})
        else:
            deadline = time.monotonic() + PATIENCE
            while not path.exists():
                if time.monotonic() > deadline:
                    raise InputError(f"{path}: the first process has not written it; do all see the same folder?")
                time.sleep(0.2)
            check_same(path, read_run(target).settings, settings)
        return cls(target, settings, questions, environment)

    def answers(self) -> dict[str, Answer]:
        return read_answers(self.folder)


def read_run(folder: str | Path) -> Run:
    """A run that was begun earlier. Raises InputError when there is none."""
    target = Path(folder)
    if not (target / RUN_FILE).is_file():
        raise InputError(f"{target}: no run here (there is no {RUN_FILE})")
    stored = read_json(target / RUN_FILE)
    if stored.get("format") != FORMAT:
        raise InputError(f"{target / RUN_FILE}: format {stored.get('format')!r}, this version reads {FORMAT}")
    return Run(target, stored["settings"], stored["questions"], stored["environment"])


def check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises InputError with every setting that is another now."""
    changes = [f"{name}: {old} -> {new}" for name, old, new in differences(before, now)]
    if changes:
        raise InputError(f"{path}: this run was begun with other settings; choose another --out ({'; '.join(changes)})")
