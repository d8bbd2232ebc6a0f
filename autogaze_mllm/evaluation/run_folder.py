"""A run: a folder with its settings and its answers, which another process may go on with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.compute.distributed import Shard
from ..common.errors import InputError
from ..common.storage.files import output_folder, read_fields, write_json
from ..common.storage.json_diff import check_same
from ..common.storage.json_text import shown
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
                check_same(path, *_by_content(read_run(target).settings, settings))
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
            check_same(path, *_by_content(read_run(target).settings, settings))
        return cls(target, settings, questions, environment)

    def answers(self) -> dict[str, Answer]:
        return read_answers(self.folder)


def read_run(folder: str | Path) -> Run:
    """A run that was begun earlier. Raises InputError when there is none."""
    target = Path(folder)
    if not (target / RUN_FILE).is_file():
        raise InputError(f"{target}: no run here (there is no {RUN_FILE})")
    stored = read_fields(target / RUN_FILE)
    if stored.get("format", Any, None) != FORMAT:
        stored_format = shown(stored.values.get("format"))
        raise InputError(f"{target / RUN_FILE}: format {stored_format}, this version reads {FORMAT}")
    settings = stored.get("settings", dict[str, Any])
    return Run(target, settings, stored.get("questions", list[str]), stored.get("environment", dict[str, Any]))


LABELS = (("model", "name", "weights"), ("seen", "gaze", "selector"))  # where, what it is called, what it is


def _by_content(before: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings to compare: what a model is called does not count where its content is known, and the content not where
    a run was begun before it was recorded."""
    first, second = dict(before), dict(now)
    for part, label, content in LABELS:
        if isinstance(first.get(part), dict) and isinstance(second.get(part), dict):
            was, here = first[part].get(content), second[part].get(content)
            left_out = {content} if was is None else {label} if here is not None and here == was else set()
            for side in (first, second):
                side[part] = {name: value for name, value in side[part].items() if name not in left_out}
    return first, second
